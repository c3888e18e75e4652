"""The calibration: its three questions, what it does without figures, its range."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audits.core.config import Rule
from audits.verdict.calibration import (
    STATES,
    Calibration,
    CalibrationNote,
    LogisticQuestion,
    calibration_features,
    case_facts,
    estimate,
    shipped,
)
from benchmarks.harness.pages import RESULTS
from benchmarks.suites.verdict.calibration import figures, fit
from evidence.results import AxisResult
from tests.helpers import audit_documents

RULE = Rule()
SHARES = {"retain accuracy": 0.6, "effective rank of retain states": 1.0}
FOUND = st.fixed_dictionaries(
    {
        "useful": st.floats(0, 1.5),
        "said": st.floats(-0.5, 1.5),
        "inside": st.floats(-0.5, 1.5),
        "within": st.floats(-0.5, 1.5),
    }
)


def axes_of(*made):
    return {each["name"]: AxisResult.from_json(each) for each in made}


def everything():
    return axes_of(
        audit_documents.behaviour(),
        audit_documents.decodability(),
        audit_documents.causal_depth(),
        audit_documents.relearning(),
    )


def test_a_question_is_a_logistic_regression():
    asked = LogisticQuestion(("a", "b"), (1.0, 0.0), (2.0, 1.0), (3.0, -1.0), 0.5, (10, 18))
    score = 3 * (2 - 1) / 2 - 0.25 + 0.5
    # So many models without an exception leave this much open on either side.
    low, rest = 1 / 12, 1 / 20
    expected = low + (1 - low - rest) / (1 + np.exp(-score))
    assert asked.probability({"a": 2, "b": 0.25}) == pytest.approx(expected)
    assert asked.probability({"a": 500, "b": 0}) == pytest.approx(1 - rest)
    assert asked.probability({"a": -500, "b": 0}) == pytest.approx(low)
    assert asked.probability({"a": 2}) is None


def chances_of(calibration: Calibration, found: Mapping[str, float]) -> dict[str, float]:
    """Probabilities of the states where every figure is known."""
    chances = calibration.probabilities(found)
    assert chances is not None
    return chances


@given(FOUND)
def test_chances_are_a_distribution_and_move_the_right_way(found):
    calibration = shipped()
    chances = chances_of(calibration, found)
    assert set(chances) == set(STATES)
    assert sum(chances.values()) == pytest.approx(1)
    assert min(chances.values()) >= 0
    better = chances_of(calibration, found | {"useful": found["useful"] + 0.1})
    assert better["damaged"] <= chances["damaged"]
    louder = chances_of(calibration, found | {"said": found["said"] + 0.1})
    assert louder["not_unlearned"] >= chances["not_unlearned"]
    fuller = chances_of(
        calibration, found | {"inside": found["inside"] + 0.1, "within": found["within"] + 0.1}
    )
    assert fuller["deleted"] <= chances["deleted"]


def test_clear_cases_are_clear():
    def most(found):
        chances = chances_of(shipped(), found)
        return max(chances, key=chances.__getitem__)

    gone = {"useful": 1.25, "said": 0.02}
    assert most({"useful": 0.2, "said": 0.0}) == "damaged"
    assert most({"useful": 1.25, "said": 1.0}) == "not_unlearned"
    assert most(gone | {"inside": 0.9, "within": 0.7}) == "suppressed"
    assert most(gone | {"inside": 0.05, "within": 0.0}) == "deleted"


def test_without_figures_from_inside_the_two_that_need_them_are_not_told_apart():
    assert shipped().probabilities({"useful": 1.25, "said": 0.0}) is None
    assert shipped().probabilities({"useful": 1.25}) is None
    assert shipped().probabilities({"useful": 0.1, "said": 0.0}) is not None


def test_figures_are_those_of_the_primary_floor():
    found = calibration_features(everything(), SHARES)
    assert found["useful"] == pytest.approx(0.6 / RULE.utility)
    assert found["said"] == pytest.approx(-0.1)
    axes = everything()
    every = [r.residual for n in axes if n != "behaviour" for r in axes[n].readings]
    assert found["inside"] == pytest.approx(max(every))
    mains = [axes[n].readings[0].residual for n in axes if n != "behaviour"]
    assert found["within"] == pytest.approx(np.mean(mains))
    second = replace(axes["relearning"].readings[0], floor_kind="reference", residual=1.4)
    both = (*axes["relearning"].readings, second)
    axes["relearning"] = replace(axes["relearning"], readings=both)
    assert calibration_features(axes, SHARES) == found
    # Answers ranked below the others are known: which to avoid.
    exact_match = axes["behaviour"].readings[0]
    contrast = replace(exact_match, metric="contrast", residual=-1.2)
    axes["behaviour"] = replace(axes["behaviour"], readings=(exact_match, contrast))
    assert calibration_features(axes, SHARES) == found | {"inside": pytest.approx(1.2)}
    short = {name: axis for name, axis in axes.items() if name != "relearning"}
    assert "inside" not in calibration_features(short, SHARES)


def test_the_front_transplant_counts_in_the_largest_distance_alone():
    before = calibration_features(everything(), SHARES)
    (made,) = axes_of(audit_documents.front_transplant()).values()
    for residual, floor in ((1.0, "never_taught"), (1.3, "reference")):
        read = replace(made.readings[0], residual=residual, floor_kind=floor)
        axes = everything() | {made.name: replace(made, readings=(read,), status="retained")}
        largest = max(before["inside"], residual)
        assert calibration_features(axes, SHARES) == before | {"inside": largest}
        failed = axes | {made.name: replace(axes[made.name], status="control_failed")}
        assert calibration_features(failed, SHARES) == before


def test_an_axis_whose_control_failed_says_nothing():
    axes = everything()
    axes["decodability"] = replace(axes["decodability"], status="control_failed")
    assert "inside" not in calibration_features(axes, SHARES)
    axes = everything()
    axes["causal_depth"] = replace(axes["causal_depth"], status="control_failed")
    fewer = {name: axis for name, axis in axes.items() if name != "causal_depth"}
    assert calibration_features(axes, SHARES) == calibration_features(fewer, SHARES)


def test_an_axis_that_the_zoo_was_not_fitted_with_is_named_where_it_found_something():
    document = audit_documents.document(*(axis.to_json() for axis in everything().values()))
    preflight = {k: v for k, v in document["preflight"].items() if k != "asking"}
    preflight["known"] |= {"retain_entities": 100}
    ranges = {n: (v, v) for n, v in case_facts(everything(), preflight).items()}
    like = replace(shipped(), ranges=ranges)
    for status, count in (("retained", 1), ("absent", 0)):
        more = replace(everything()["relearning"], name="quantization", status=status)
        found = estimate(like, everything() | {"quantization": more}, preflight)
        assert len(found.calibration.outside) == count


def test_the_published_figures_are_those_of_the_calibration_that_ships():
    published = json.loads((RESULTS / "verdict.json").read_text(encoding="utf-8"))
    assert published["probabilities"]["version"] == shipped().version


def test_a_case_unlike_the_zoo_says_so():
    document = audit_documents.document(*(axis.to_json() for axis in everything().values()))
    preflight = {k: v for k, v in document["preflight"].items() if k != "asking"}
    preflight["known"] |= {"retain_entities": 100}
    facts = case_facts(everything(), preflight)
    ranges = {name: (value, value) for name, value in facts.items()}
    like = replace(shipped(), ranges=ranges)
    inside = estimate(like, everything(), preflight)
    assert inside.calibration == CalibrationNote(like.version, ())
    few = ranges | {"forgotten entities": (20.0, 30.0)}
    outside = estimate(replace(like, ranges=few), everything(), preflight)
    (message,) = outside.calibration.outside
    assert message == "forgotten entities: 12, in the zoo 20 to 30"
    assert outside.probabilities == inside.probabilities
    # The zoo was scored by exact match, against invented entities.
    otherwise = estimate(
        like, everything(), preflight | {"asking": document["preflight"]["asking"]}
    )
    (message,) = otherwise.calibration.outside
    assert message.startswith("score contains, floor permuted")


def test_it_survives_being_written_down():
    saved = shipped().to_dict()
    assert Calibration.from_dict(saved) == shipped()


def test_it_was_fitted_on_the_tuning_part_alone():
    """Seeds of the held-out part are in its split file; none may be in the version."""
    from testbeds.zoo.build import split

    version = shipped().version
    worlds = version.split("tuning worlds ")[1].split(";")[0].split(", ")
    for world in worlds:
        family, seed = world.split()
        assert family in split()["tuning"]["families"]
        assert int(seed) in split()["tuning"]["seeds"]


def test_fitting_finds_what_tells_the_states_apart():
    def case(state, exact_match, inner, kept):
        made = [
            audit_documents.axis(
                "behaviour",
                audit_documents.reading(
                    "exact match", [audit_documents.column("o", 0)], exact_match
                ),
                n_entities=24,
            )
        ]
        for name in ("decodability", "causal_depth", "relearning"):
            column = audit_documents.column("resid.1", 0.5)
            made.append(audit_documents.axis(name, audit_documents.reading("x", [column], inner)))
        document = audit_documents.document(*made)
        document["preflight"]["utility"]["shares"] = {"retain accuracy": kept}
        document["preflight"]["known"] |= {"retain_entities": 100}
        document["config"] = {"rule": RULE.model_dump()}
        return {"state": state, "model": f"{state}-{exact_match}", "audit": document}

    rng = np.random.default_rng(0)
    places = {
        "not_unlearned": (1.0, 1.0, 1.0),
        "suppressed": (0.0, 0.8, 1.0),
        "deleted": (0.0, 0.0, 1.0),
        "damaged": (0.2, 0.3, 0.3),
    }
    cases = [
        case(state, *(np.array(place) + rng.normal(size=3) * 0.03).tolist())
        for state, place in places.items()
        for _ in range(10)
    ]
    found = fit(cases, 10.0, "made up")
    for state, (exact_match, inner, kept) in places.items():
        chances = chances_of(
            found,
            {"useful": kept / RULE.utility, "said": exact_match, "inside": inner, "within": inner},
        )
        assert max(chances, key=chances.__getitem__) == state
        # Three questions of ten or twenty models each, and none is surer than that.
        assert chances[state] > 0.8
    assert found.ranges["forgotten entities"] == (12.0, 12.0)
    # The null: states dealt anew among the same audits can be told from nothing.
    states = rng.permutation([each["state"] for each in cases]).tolist()
    permuted = [each | {"state": state} for each, state in zip(cases, states, strict=True)]
    half = fit(permuted[::2], 10.0, "dealt")
    right = [
        max(chances, key=chances.__getitem__) == each["state"]
        for each in permuted[1::2]
        if (chances := half.probabilities(figures(each))) is not None
    ]
    assert len(right) >= 15 and np.mean(right) <= 0.6
