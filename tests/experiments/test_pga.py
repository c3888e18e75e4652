"""``exhume pga`` from settings to page, on a world that is made in seconds."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from capture.network.hooks import count_hooks
from erasure.unlearning.probe_alignment import PgaConfig, align_
from evidence.errors import InputError
from evidence.progress import SILENT
from exhume.cli.app import app
from experiments.pga import run as module
from experiments.pga.claims import NO, OPEN, YES, claims_of
from experiments.pga.config import make_config, read_config
from experiments.pga.erasers import ERASERS, HOOKED, erase
from experiments.pga.readouts import logistic_readouts
from experiments.pga.report import render
from experiments.pga.results import ModelRow
from experiments.pga.run import measure_published, pga
from experiments.pga.states import all_states, depth_sites
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import recall
from tests.helpers.tiny_worlds import TINY

QUICK = {"erasers": ("pga", "md-pga"), "epochs": 6, "permutations": 19, "random_inits": 1}
PROTOCOLS = ("published", "sound")
TRAINED = ("logistic C=1", "mlp 64", "mlp 128-64", "svm rbf", "nearest neighbours", "random forest")


@pytest.fixture(scope="module")
def world(tiny_codes):
    return tiny_codes


@pytest.fixture(scope="module")
def root(world):
    return world.root.parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SIZES, "small", TINY)


@pytest.fixture(scope="module")
def done(root, world, tmp_path_factory):
    out = tmp_path_factory.mktemp("pga") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "small", TINY)
        return pga(make_config(QUICK), out, root=root), out


def test_every_model_is_read_under_both_protocols(done):
    document, _ = done
    names = [(row["model"], row["eraser"]) for row in document["rows"]]
    assert names[:3] == [("original", None), ("twin", None), ("untrained 1", None)]
    for name in QUICK["erasers"]:
        parts = [row for row in document["rows"] if row["eraser"] == name]
        assert ["published" in part for part in parts] == [True, False]
        assert ["sound" in part for part in parts] == [False, True]
    for row in document["rows"]:
        if "sound" in row:
            shape = np.shape(row["sound"]["auc"])
            assert shape == (2, 7, TINY.layers + 1)
            assert row["sound"]["sequences"] == 8


def test_erased_and_tested_keys_are_disjoint(done, world):
    """Do-not-copy 4."""
    document, _ = done
    test = set(document["world"]["test_keys"])
    assert len(test) == 4
    run = module.Experiment(make_config(QUICK), world, SILENT)
    assert set(run.test.tolist()) == test
    assert not test & set(run.seen.tolist())
    sound = [r for r in document["rows"] if r["eraser"] and "sound" in r]
    for row in sound:
        # What it saw is forgotten or not; what it did not see is looked at apart.
        assert {"recall", "recall_test"} <= set(row["sound"])


def test_claims_never_call_below_chance_or_not_found_a_success(done):
    document, _ = done
    assert document["claims"]
    for claim in document["claims"]:
        assert claim["outcome"] in (YES, NO, OPEN)
        if claim["claim"].endswith("removes the signature"):
            assert claim["outcome"] != YES


def test_the_page_is_whole_and_asks_for_nothing_from_outside(done):
    document, out = done
    page = (out / "report.html").read_text()
    assert "default-src 'none'" in page
    body = page.split('<script type="application/json"')[0]
    assert "http" not in body.replace("http-equiv", "")
    for claim in document["claims"]:
        assert claim["outcome"] in page
    assert json.loads((out / "pga.json").read_text())["schema_version"] == 2


def test_fits_without_a_certificate_are_on_the_page(done):
    document, out = done
    parts = [row[key] for row in document["rows"] for key in row if key in PROTOCOLS]
    assert [part["uncertified"] for part in parts] == [0] * len(parts)
    assert document["interventions"]["uncertified"] == 0
    assert "certified" not in (out / "report.html").read_text().split("<script")[0]
    changed = json.loads(json.dumps(document))
    changed["rows"][0]["published"]["uncertified"] = 2
    changed["interventions"]["uncertified"] = 1
    assert "3 logistic fits are not certified" in render(changed)


def test_interrupted_it_goes_on_and_ends_with_the_same_bytes(done, root, tmp_path, monkeypatch):
    _, whole = done
    real, calls = module.Experiment.sound, []

    def stops(self, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, name)

    monkeypatch.setattr(module.Experiment, "sound", stops)
    with pytest.raises(KeyboardInterrupt):
        pga(make_config(QUICK), tmp_path / "out", root=root)
    assert not (tmp_path / "out" / "pga.json").exists()
    monkeypatch.setattr(module.Experiment, "unmodified", None)  # must not be run again
    pga(make_config(QUICK), tmp_path / "out", root=root)
    assert calls == ["pga", "md-pga", "md-pga"]
    ours = (tmp_path / "out" / "pga.json").read_bytes()
    assert ours == (whole / "pga.json").read_bytes()


def test_another_experiment_in_the_folder_is_not_overwritten(done, root):
    _, out = done
    with pytest.raises(InputError, match="--fresh"):
        pga(make_config(QUICK | {"seed": 1}), out, root=root)


@pytest.mark.parametrize("name", ERASERS)
def test_every_eraser_runs_and_leaves_the_original_as_it_was(name, world):
    original = world.load()
    before = {key: value.clone() for key, value in original.state_dict().items()}
    hooks = count_hooks(original)
    erased = erase(name, original, world, np.arange(4), epochs=4)
    with erased.running():
        states = all_states(erased.model, world, world.trained_lead_ins)
        assert bool(torch.isfinite(states["last"]["memorised"]).all())
    after = original.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert count_hooks(original) == hooks
    assert (len(erased.edits) == TINY.layers + 1) == (name in HOOKED)


@pytest.mark.parametrize("name", ["gradient ascent", "npo", "idk"])
def test_baselines_forget_what_they_were_given(name, world):
    erased = erase(name, world.load(), world, np.arange(8))
    assert recall(erased.model, world.memorized_rows()).mean < 0.01


def test_md_pga_drives_the_twin_below_chance_as_well(root, world):
    """Do-not-copy 1: a model that memorised nothing passes for erased."""
    twin = world.load("twin")
    run = module.Experiment(make_config({}), world, SILENT)
    before = run.published_figures(module.Erased(twin, {}, {}))
    erased = erase("md-pga", twin, world, run.all)
    after = run.published_figures(erased)
    assert min(after["true"]) < 0.4
    assert np.mean(after["true"]) < np.mean(before["true"])


def test_fixed_clean_codes_are_memorised_and_flagged(world):
    """Do-not-copy 10: the clean pool takes the memorised one's place."""
    run = module.Experiment(make_config({}), world, SILENT)
    config = PgaConfig(lr=1e-2, epochs=60, refit_every=20)
    swapped = {}
    for fixed in (True, False):
        model = world.load()

        def clean(epoch, fixed=fixed):
            return world.random_codes("clean", 0 if fixed else epoch)

        align_(model, world.memorized_rows(), clean, logistic_readouts(), config, seed=0)
        cost = run.recall_and_utility(module.Erased(model, {}, {}), run.all)
        swapped[fixed] = cost["utility"]["role_swap"]
    assert swapped[True] and not swapped[False]


def test_trained_readers_are_scored_on_the_same_sequences(world):
    run = module.Experiment(make_config({"trained_readers": True}), world, SILENT)
    rows = {"last": torch.randn(1, 30, 5).double()}
    rows["last"][:, :15] += 9.0
    found, uncertified = run._trained(rows, np.repeat([1, 0], 15))
    assert uncertified == 0
    assert set(TRAINED) <= set(found)
    assert min(found.values()) > 0.9


def test_measuring_one_eraser_needs_no_twin(root):
    found = measure_published(make_config({}), root, None)
    assert max(found["true"]) > 0.8


def test_depths_are_the_embeddings_and_every_block(world):
    assert depth_sites(world.load()) == ["embed", "resid.0", "resid.1"]


def test_settings_come_from_yaml(tmp_path):
    path = tmp_path / "pga.yaml"
    path.write_text("size: medium\nerasers: [pga, npo]\npermutations: 99\n")
    config = read_config(path)
    assert (config.size, config.erasers) == ("medium", ("pga", "npo"))
    path.write_text("")
    assert read_config(path) == make_config({})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: huge", "size of .* cannot be used"),
        ("colour: red", "colour of .* cannot be used.*Settings are size"),
        ("erasers: [magic]", "there is no eraser 'magic'"),
        ("- 1", "does not hold settings"),
        ("size: [", "is not valid YAML"),
        ("permutations: 3", "permutations of .* cannot be used"),
    ],
)
def test_bad_settings_are_one_clear_error(tmp_path, text, message):
    path = tmp_path / "pga.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path)


def test_bad_erasers_are_one_clear_error(world):
    with pytest.raises(InputError, match="there is no eraser 'x'"):
        erase("x", world.load(), world, np.arange(2))
    with pytest.raises(InputError, match="not pairs of this world"):
        erase("pga", world.load(), world, np.array([99]))
    with pytest.raises(InputError, match="cannot be read"):
        read_config(world.root / "none.yaml")


def test_the_command_has_help_and_reads_its_options():
    runner = CliRunner()
    shown = runner.invoke(app, ["pga", "--help"])
    assert shown.exit_code == 0 and "held-out protocol" in shown.output
    failed = runner.invoke(app, ["pga", "--erasers", "magic"])
    assert isinstance(failed.exception, InputError)


def signed(reading, p, best, smallest=0.001):
    return {
        "reading": reading,
        "p": p,
        "best": best,
        "band": 0.7,
        "smallest_p": smallest,
        "sequences": 80,
        "p_column": [[[0.001, 0.5]]],
        "interval": [[[[best - 0.15, 0.0]]], [[[best + 0.15, 1.0]]]],
        "recall": {"mean": 1e-5},
        "recall_test": {"mean": 0.9},
        "utility": {"role_swap": False, "kept": True, "ratio": 1.02},
    }


def eraser_rows(sound, probes) -> list[ModelRow]:
    unerased = {"true": [0.5, 1.0], "reading": "signal"}
    published = {
        "true": probes,
        "recall": {"least": 1e-5},
        "utility": {"perplexity": [1.4, 1.42], "ratio": 1.01, "role_swap": False, "kept": True},
    }
    none = signed("none", 0.5, 0.6)
    rows: Any = [
        {"model": "original", "eraser": None, "published": unerased,
         "sound": signed("present", 0.002, 0.99)},
        {"model": "twin", "eraser": None, "published": unerased, "sound": none},
        {"model": "untrained 1", "eraser": None, "published": unerased, "sound": none},
        {"model": "original", "eraser": "x", "published": published},
        {"model": "original", "eraser": "x", "sound": sound},
    ]  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("sound", "outcome"),
    [
        (signed("inverted", 0.002, 0.3), NO),
        (signed("present", 0.002, 0.9), NO),
        (signed("none", 0.5, 0.6), OPEN),
    ],
)
def test_a_probe_below_chance_is_a_claim_that_must_be_earned(sound, outcome):
    claims = {c["claim"]: c for c in claims_of(eraser_rows(sound, [0.1, 0.2]))}
    assert claims["x removes the signature"]["outcome"] == outcome
    assert "below chance" in claims["x removes the signature"]["published"]
    assert claims["memorised sequences share a signature"]["outcome"] == YES


@pytest.mark.parametrize(
    ("low", "high", "outcome", "says"),
    [
        (0.35, 0.62, YES, "equivalent to chance: all 1 readers"),
        (0.25, 0.65, OPEN, "about 143 would do"),
        (0.55, 0.95, OPEN, "one is at 0.25 from 0.5"),
    ],
)
def test_gone_is_shown_by_equivalence_and_never_by_silence(low, high, outcome, says):
    """Two one-sided tests, on the readers that found it in the original."""
    sound = signed("none", 0.5, 0.6)
    # The second column found nothing in the original: wide as it is, it has no say.
    sound["interval"] = [[[[low, 0.0]]], [[[high, 1.0]]]]
    claims = {c["claim"]: c for c in claims_of(eraser_rows(sound, [0.1, 0.2]), 0.2)}
    found = claims["x removes the signature"]
    assert found["outcome"] == outcome and says in found["why"]


def test_what_is_not_claimed_is_not_listed():
    claims = claims_of(eraser_rows(signed("none", 0.5, 0.6), [0.5, 1.0]))
    assert "x removes the signature" not in [claim["claim"] for claim in claims]


def test_one_run_that_costs_too_much_is_enough():
    rows = eraser_rows(signed("none", 0.5, 0.6), [0.5, 1.0])
    utility = {"role_swap": False, "kept": False, "ratio": 1.07}
    rows[-1]["sound"] |= {"utility": utility}  # pyright: ignore[reportGeneralTypeIssues, reportTypedDictNotRequiredAccess]
    claims = {c["claim"]: c for c in claims_of(rows)}
    assert claims["x keeps utility"]["outcome"] == NO
    assert "1.070" in claims["x keeps utility"]["sound"]
