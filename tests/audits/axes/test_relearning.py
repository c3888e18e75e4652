"""The rate of relearning is one at which every arm learns every half it is taught."""

from types import SimpleNamespace
from typing import Any

from audits.axes import relearning
from audits.core.config import AuditConfig
from evidence.progress import SILENT

RATES = AuditConfig().budget.relearn_rates


STEPS = AuditConfig().budget.relearn_steps


def choose(monkeypatch, learns, arms, patience=None):
    """From which rate on a role learns a half, and in how many steps."""
    made = []

    def relearn(subject, tokenizer, half, config, rate, steps, *, device, progress):
        made.append((subject.role, half, rate))
        enough = steps >= (patience or {}).get((subject.role, half), 0)
        share = 1.0 if enough and rate >= learns[subject.role, half] else 0.2
        return {"taught": [0.0, share], "half": half, "rate": rate, "steps": steps}

    monkeypatch.setattr(relearning, "relearn", relearn)
    subjects: list[Any] = [(SimpleNamespace(role=role), halves) for role, halves in arms]
    chosen = relearning.choose_rate(
        subjects,
        None,  # pyright: ignore[reportArgumentType]
        ["first", "second"],  # pyright: ignore[reportArgumentType]
        AuditConfig(),
        device="cpu",
        progress=SILENT,
    )
    return chosen, made


def test_a_rate_that_teaches_one_half_alone_is_too_low(monkeypatch):
    learns = {("unlearned", "first"): RATES[1], ("unlearned", "second"): RATES[2]}
    chosen, _ = choose(monkeypatch, learns, [("unlearned", [0, 1])])
    assert chosen["rate"] == RATES[2]
    runs = chosen["runs"]["unlearned"]
    # Both runs are those of the rate that was taken.
    assert {key: (run["half"], run["rate"]) for key, run in runs.items()} == {
        "0": ("first", RATES[2]),
        "1": ("second", RATES[2]),
    }


def test_the_plant_must_learn_as_well_and_is_taught_one_half(monkeypatch):
    learns = dict.fromkeys([("unlearned", "first"), ("unlearned", "second")], RATES[0]) | {
        ("planted", "first"): RATES[3]
    }
    arms = [("unlearned", [0, 1]), ("planted", [0])]
    chosen, made = choose(monkeypatch, learns, arms)
    assert chosen["rate"] == RATES[3]
    assert ("planted", "second", RATES[3]) not in made


def test_a_rate_too_low_is_given_up_at_the_first_failure(monkeypatch):
    learns = dict.fromkeys([("unlearned", "first"), ("unlearned", "second")], RATES[1])
    _, made = choose(monkeypatch, learns, [("unlearned", [0, 1])])
    assert [rate for _, _, rate in made] == [RATES[0], RATES[1], RATES[1]]


def test_where_nothing_will_do_the_longest_try_stands(monkeypatch):
    never = dict.fromkeys([("unlearned", "first"), ("unlearned", "second")], 1.0)
    chosen, made = choose(monkeypatch, never, [("unlearned", [0, 1])])
    assert (chosen["rate"], chosen["steps"]) == (RATES[-1], 16 * STEPS)
    assert list(chosen["runs"]["unlearned"]) == ["0"]
    assert len(made) == len(RATES) + 4


def test_a_model_slow_to_learn_is_taught_longer_and_not_faster(monkeypatch):
    learns = {("unlearned", "first"): RATES[0], ("unlearned", "second"): RATES[1]}
    slow = {("unlearned", "second"): STEPS + 1}
    chosen, _ = choose(monkeypatch, learns, [("unlearned", [0, 1])], slow)
    assert (chosen["rate"], chosen["steps"]) == (RATES[-1], 2 * STEPS)
    assert {run["steps"] for run in chosen["runs"]["unlearned"].values()} == {2 * STEPS}


def test_no_steps_are_added_where_a_rate_teaches_in_the_budget(monkeypatch):
    learns = dict.fromkeys([("unlearned", "first"), ("unlearned", "second")], RATES[1])
    chosen, _ = choose(monkeypatch, learns, [("unlearned", [0, 1])])
    assert chosen["steps"] == STEPS


def test_the_candidate_that_learns_at_once_costs_no_further_rate(monkeypatch):
    learns = dict.fromkeys([("unlearned", "first"), ("unlearned", "second")], 0.0)
    chosen, made = choose(monkeypatch, learns, [("unlearned", [0, 1])])
    assert chosen["rate"] == RATES[0]
    assert [half for _, half, _ in made] == ["first", "second"]
