"""Permuted answers: exact where nothing is known, sharp where all is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from audits.axes.decodability.label_permutation import answer_permutation_test
from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task, make_tasks, row_scores, within_entity_rank
from audits.axes.decodability.text_probes import ProbingData, TaskStates
from audits.core.roles import Role
from audits.core.scores import Part
from capture.data.items import Item, ItemSet
from tests.helpers.tiny_models import byte_level


def items(n, prefix, answers=None, wordings=1):
    return [
        Item(
            f"{prefix}{i}",
            f"{prefix}{i}",
            f"The capital of {prefix}{i} is",
            answers[i % len(answers)] if answers else f"{prefix.upper()}town{i}",
            "capital",
            paraphrases=tuple(f"{prefix}{i} is ruled from" for _ in range(wordings - 1)),
        )
        for i in range(n)
    ]


def one_task(n=20, answers=None, wordings=1, seed=0) -> Task:
    sets = {
        "fit": items(30, "r", answers),
        "check": items(10, "c", answers),
        "forget": items(n, "f", answers),
        "never_taught": items(n, "n", answers, wordings),
    }
    found, _ = make_tasks(
        {name: ItemSet(tuple(each)) for name, each in sets.items()},
        byte_level(),
        wordings=wordings,
        statement_wordings=wordings,
        block_size=5,
        rng=np.random.default_rng(seed),
    )
    return found[0]


def probing(task: Task, values: np.ndarray) -> tuple[ProbingData, list[SiteProbe]]:
    """Hidden states that are the scores themselves, and a reader that passes them on.

    ``values``: (site, row, output).
    """
    width = values.shape[2]
    states = {Role.ORIGINAL: TaskStates({(0, "never_taught"): values})}
    reader = SiteProbe(np.stack([np.eye(width)] * len(values)), np.zeros((len(values), width)))
    sites = tuple(f"resid.{site}" for site in range(len(values)))
    return ProbingData([task], sites, states), [reader]


def run(task, values, seed=0, n_permutations=400):
    made, readers = probing(task, values)
    use = np.ones(len(values), dtype=bool)
    rng = np.random.default_rng(seed)
    return answer_permutation_test(
        made, readers, Role.ORIGINAL, Part.NEVER_TAUGHT, use, rng, n_permutations
    )


@pytest.mark.parametrize("wordings", [1, 2])
def test_knowing_the_truth_is_far_above_any_deal(wordings):
    task = one_task(wordings=wordings)
    part = task.parts["never_taught"]
    noise = np.random.default_rng(0).normal(size=len(part))
    test, chance = run(task, np.stack([part.labels + 0.0, noise])[:, :, None])
    assert chance == pytest.approx([0.5, 0.5], abs=0.03)
    assert test.difference[0] == pytest.approx(0.5, abs=0.03)
    assert test.p_value == test.smallest_p


@pytest.mark.parametrize("answers", [None, [f"town {n}" for n in range(9)]])
@pytest.mark.parametrize("n", [40, 120, 2000])
def test_the_arrangements_of_many_entities_are_no_trouble(n, answers):
    # Of 120 invented people there are more than the largest floating-point number.
    task = one_task(n, answers)
    part = task.parts["never_taught"]
    truth = np.eye(max(2, task.n_classes))[part.labels][None]
    test, _ = run(task, truth if answers else part.labels[None, :, None] + 0.0, n_permutations=9)
    assert test.smallest_p == 0.1
    assert test.p_value == 0.1


def test_three_relations_of_forty_people_each_invented_three_times():
    task = one_task(120, [f"town {n}" for n in range(9)])
    values = np.eye(9)[task.parts["never_taught"].labels][None]
    states = TaskStates({(number, "never_taught"): values for number in range(3)})
    made = ProbingData([task] * 3, ("resid.0",), {Role.ORIGINAL: states})
    readers = [SiteProbe(np.eye(9)[None], np.zeros((1, 9)))] * 3
    rng, use = np.random.default_rng(0), np.ones(1, dtype=bool)
    test, _ = answer_permutation_test(made, readers, Role.ORIGINAL, Part.NEVER_TAUGHT, use, rng, 9)
    assert test.smallest_p == 0.1


def test_the_smallest_p_of_few_arrangements_is_told():
    task = one_task(4, ["Rome", "Rome", "Oslo", "Oslo"])
    truth = np.eye(2)[task.parts["never_taught"].labels][None]
    test, _ = run(task, truth, n_permutations=399)
    assert test.smallest_p == 1 / 6


def test_the_shared_form_knows_its_base_rate():
    task = one_task(answers=["Rome", "Rome", "Rome", "Oslo"])
    part = task.parts["never_taught"]
    assert task.form == "shared"
    always = np.zeros((len(part), 2))
    always[:, list(np.bincount(part.labels)).index(15)] = 1
    test, chance = run(task, np.stack([always, np.eye(2)[part.labels]]))
    # Always saying the common answer is right as often however answers are permuted.
    assert test.difference[0] == pytest.approx(0)
    assert chance[0] == pytest.approx(0.75)
    assert chance[1] == pytest.approx(0.75**2 + 0.25**2, abs=0.03)
    assert test.p_value == test.smallest_p


def test_the_observed_score_is_that_of_the_readings():
    task = one_task(wordings=2)
    part = task.parts["never_taught"]
    values = np.random.default_rng(3).normal(size=(4, len(part), 1))
    test, chance = run(task, values)
    made, readers = probing(task, values)
    scores = made.score(readers, Role.ORIGINAL, Part.NEVER_TAUGHT).by_entity()
    assert test.difference + chance == pytest.approx(scores.mean)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_every_entitys_statements_average_to_one_half(seed):
    task = one_task(12, seed=seed)
    part = task.parts["never_taught"]
    values = np.random.default_rng(seed).normal(size=(2, len(part), 1)).round(1)
    every = within_entity_rank(part, values[:, :, 0])
    for name in dict.fromkeys(part.entities):
        mine = [row for row, e in enumerate(part.entities) if e == name]
        assert every[mine].mean(0) == pytest.approx([0.5, 0.5])
    scored = row_scores(task, part, values)
    assert np.isnan(scored).any(1).sum() == (part.labels == 0).sum()


def test_p_values_are_uniform_though_all_entities_move_together():
    """Scores that depend on name and answer words alone, drawn at random."""
    found = []
    for seed in range(200):
        task = one_task(20, seed=seed)
        part = task.parts["never_taught"]
        rng = np.random.default_rng(seed)
        # Each name and answer has a few traits; some names suit some answers.
        name = {e: rng.normal(size=2) for e in dict.fromkeys(part.entities)}
        word = {a: rng.normal(size=2) for a in dict.fromkeys(part.answers)}
        scores = [name[e] @ word[a] for e, a in zip(part.entities, part.answers, strict=True)]
        test, _ = run(task, np.array(scores)[None, :, None], seed, 199)
        found.append(test.p_value)
    assert stats.kstest(found, "uniform").pvalue > 0.01
