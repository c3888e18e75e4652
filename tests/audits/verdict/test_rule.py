"""The rule as a truth table: what fires, in which order, and what may never fire."""

from dataclasses import replace

import pytest

from audits.axes.causal_depth import axis as causal_depth
from audits.axes.concept import axis as concept
from audits.axes.decodability.axis import REFITTED, UNCHANGED
from audits.axes.relearning import CONTRAST, EXACT_MATCH
from audits.axes.restoration import axis as restoration
from audits.core.config import Rule
from audits.core.preflight import Damage
from audits.modalities.image_vocabulary import (
    HELD_OUT_NAMED,
    NAMED,
    STEERED_NAMED,
    TRANSFERRED_NAMED,
)
from audits.modalities.vocabulary import vocabulary_for
from audits.verdict.rule import decide
from evidence.results import AxisResult, Control, Reading

FINE = Damage({"retain accuracy": 1.0}, ())
WRECK = Damage({"retain accuracy": 0.1}, ("retain accuracy is 10 %",))
PLANTED = Control("the planted suppression is seen", 0.001, "p < 0.05", True)
UNSEEN = Control("the planted suppression is seen", 0.5, "p < 0.05", False)


def reading(name, residual, p, spread=0.1):
    return Reading(
        name=name,
        statistic=residual,
        interval=(max(0, residual - spread), residual + spread),
        floor=0.0,
        floor_kind="never_taught",
        ceiling=1.0,
        residual=residual,
        residual_interval=(residual - spread, residual + spread),
        p_value=p,
        p_below=0.5,
        smallest_p=0.001,
        where="resid.1",
        columns=(
            {"name": "resid.1", "p_value": p, "tost": [residual - spread, residual + spread]},
        ),
    )


def axis(name, status, *readings, controls=(PLANTED,)):
    return AxisResult(name, "?", status, "s", tuple(readings), tuple(controls), 24)


def axes(
    behaviour="absent",
    unchanged=0.9,
    refitted=0.9,
    relearned=0.9,
    contrast=0.9,
    controls=(PLANTED,),
):
    """p-values of the readings; small means found."""
    probe = "retained" if min(unchanged, refitted) < 0.05 else "absent"
    attack = "retained" if relearned < 0.05 else "absent"

    def level(p):
        return 0.8 if p < 0.05 else 0.0

    return {
        "behaviour": axis(
            "behaviour",
            behaviour,
            reading("said in full", 1.0 if behaviour == "retained" else 0.0, 0.5),
            reading("told from the others", level(contrast), contrast),
            controls=(),
        ),
        "decodability": axis(
            "decodability",
            probe,
            reading(REFITTED, level(refitted), refitted),
            reading(UNCHANGED, level(unchanged), unchanged),
            controls=controls,
        ),
        "relearning": axis(
            "relearning",
            attack,
            reading(CONTRAST, level(relearned), relearned),
            reading(EXACT_MATCH, 0.0, 0.9),
            controls=controls,
        ),
    }


def with_depth(found, contrast=0.9, exact_match=0.9, status=None):
    """The axes and causal depth beside them."""
    kept = min(contrast, exact_match) < 0.05
    return found | {
        "causal_depth": axis(
            "causal_depth",
            status or ("retained" if kept else "absent"),
            reading(causal_depth.CONTRAST, 0.8 if contrast < 0.05 else 0.0, contrast),
            reading(causal_depth.EXACT_MATCH, 0.8 if exact_match < 0.05 else 0.0, exact_match),
        )
    }


def word(found, damage=FINE, identical=False):
    return decide(found, damage, identical, "never_taught", Rule()).verdict_class


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (axes(), "deleted"),
        (axes(behaviour="retained"), "not_unlearned"),
        (axes(unchanged=0.001), "suppressed"),
        (axes(relearned=0.001), "suppressed"),
        (axes(refitted=0.001), "inconclusive"),
        (axes(contrast=0.001), "inconclusive"),
        (axes(behaviour="no_power", unchanged=0.001), "inconclusive"),
        (axes(controls=(UNSEEN,)), "inconclusive"),
        (axes(controls=()), "inconclusive"),
        # 0.03 alone would pass; corrected for three tests it does not.
        (axes(unchanged=0.03), "inconclusive"),
        (with_depth(axes()), "deleted"),
        (with_depth(axes(), contrast=0.001), "suppressed"),
        (with_depth(axes(), exact_match=0.001), "suppressed"),
        (with_depth(axes(behaviour="no_power"), contrast=0.001), "inconclusive"),
        # A retrain's states may be unreadable to the original: silence, no veto.
        (axes() | {"causal_depth": axis("causal_depth", "no_power")}, "deleted"),
        # Read, near the floor, and not shown to be at it: no veto either.
        (with_depth(axes(), status="no_power"), "deleted"),
        # Read far from the floor, though no test can say so.
        (with_depth(axes(), contrast=0.04, status="no_power"), "inconclusive"),
        # Nor has an axis whose controls failed a say.
        (with_depth(axes(), contrast=0.001, status="control_failed"), "deleted"),
    ],
)
def test_each_rule_fires_on_its_own_evidence(found, expected):
    assert word(found) == expected


@pytest.mark.parametrize(
    ("residual", "spread", "expected"),
    [
        # A test finds it, but it is no more than a seed's luck, and within the margin.
        (0.15, 0.1, "deleted"),
        # As small, and not known well enough to lie within the margin.
        (0.2, 0.15, "inconclusive"),
        # Surely more than luck.
        (0.25, 0.1, "suppressed"),
    ],
)
def test_what_is_found_must_also_matter(residual, spread, expected):
    found = axes()
    small = reading(UNCHANGED, residual, 0.0005, spread)
    within = residual + spread < Rule().margin
    status = "absent" if within else "no_power"
    none = reading(REFITTED, 0.0, 0.9)
    found["decodability"] = axis("decodability", status, none, small)
    assert word(found) == expected


def test_why_an_axis_that_found_something_makes_no_suppression():
    def reasons(found):
        return " ".join(decide(found, FINE, False, "never_taught", Rule()).reasons)

    assert "a refitted probe" in reasons(axes(refitted=0.001))
    named = axis("restoration", "retained", reading("steered", 0.9, 0.0005))
    assert "restoration: it finds" in reasons(axes() | {"restoration": named})
    assert "no verdict by itself" in reasons(axes() | {"restoration": named})
    # 0.004 is enough for two readings of one axis, not for three of two.
    weak = axes()
    own = reading(UNCHANGED, 0.8, 0.004)
    none = reading(REFITTED, 0.0, 0.9)
    weak["decodability"] = axis("decodability", "retained", none, own)
    assert word(weak) == "inconclusive"
    assert "once corrected for all axes" in reasons(weak)
    assert "refitted" not in reasons(weak)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((-0.5, -0.3), "inconclusive"),
        ((-0.5, -0.11), "inconclusive"),
        # So little may be the luck of a model that never knew.
        ((-0.3, -0.09), "deleted"),
        ((-0.2, 0.01), "deleted"),
    ],
)
def test_answers_pushed_below_the_others_block_deletion(ends, expected):
    found = axes()
    exact_match, contrast = found["behaviour"].readings
    below = {"name": contrast.where, "p_value": 1.0, "tost": [end / 2 for end in ends]}
    avoided = replace(
        contrast,
        statistic=0.1,
        floor=0.5,
        residual=-0.4,
        p_value=1.0,
        p_below=0.001,
        columns=(below,),
    )
    found["behaviour"] = replace(found["behaviour"], readings=(exact_match, avoided))
    verdict = decide(found, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == expected
    assert ("which to avoid" in verdict.reasons[0]) == (expected == "inconclusive")


@pytest.mark.parametrize("behaviour", ["retained", "absent"])
def test_damage_comes_first_and_the_rest_is_still_reported(behaviour):
    found = axes(behaviour=behaviour, unchanged=0.001)
    verdict = decide(found, WRECK, False, "never_taught", Rule())
    assert verdict.verdict_class == "damaged"
    assert any("recovered" in each for each in verdict.also)


def test_equal_weights_are_not_unlearned_said_plainly():
    only = {"behaviour": axes(behaviour="retained")["behaviour"]}
    verdict = decide(only, FINE, True, "never_taught", Rule())
    assert verdict.verdict_class == "not_unlearned"
    assert "exactly the same weights" in verdict.reasons[0]


@pytest.mark.parametrize("name", ["decodability", "relearning"])
@pytest.mark.parametrize("status", ["missing", "no_power", "control_failed", "error"])
def test_absence_of_evidence_is_never_deletion(name, status):
    found = axes()
    if status == "missing":
        del found[name]
    else:
        found[name] = axis(name, status, *found[name].readings)
    verdict = decide(found, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "inconclusive"
    assert any(name in reason for reason in verdict.reasons)


def test_an_axis_whose_control_failed_cannot_make_suppressed():
    found = axes(unchanged=0.001)
    found["decodability"] = axis("decodability", "control_failed", *found["decodability"].readings)
    assert word(found) == "inconclusive"


def test_layers_and_reasons_are_named():
    verdict = decide(axes(unchanged=0.001), FINE, False, "never_taught", Rule())
    assert verdict.where == ("resid.1",)
    assert "own probe" in verdict.reasons[0]
    suppressed = with_depth(axes(), contrast=0.001)
    verdict = decide(suppressed, FINE, False, "never_taught", Rule())
    assert verdict.where == ("resid.1",)
    assert "put into the original" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("concept", concept.READING),
        ("restoration", restoration.CONTRAST),
        ("restoration", restoration.EXACT_MATCH),
    ],
)
def test_concepts_and_restoration_make_suppressed_by_themselves(name, found):
    whole = axes()
    whole[name] = axis(name, "retained", reading(found, 0.9, 0.0005))
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "suppressed"
    assert set(verdict.adjusted_p) >= {f"{name}: {found}"}
    whole[name] = replace(whole[name], status="control_failed")
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class != "suppressed"


@pytest.mark.parametrize(
    ("name", "found"), [("restoration", STEERED_NAMED), ("relearning", HELD_OUT_NAMED)]
)
def test_what_an_image_model_is_brought_to_say_only_blocks_deletion(name, found):
    whole = axes()
    whole[name] = axis(name, "retained", reading(found, 0.9, 0.0005))
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "inconclusive"


@pytest.mark.parametrize("residual", [0.0, 0.9])
def test_a_class_of_images_is_told_of_in_its_own_words(residual):
    named = reading(NAMED, residual, 0.5 if residual == 0 else 0.0005)
    whole = axes()
    whole["behaviour"] = axis("behaviour", "retained" if residual else "absent", named, controls=())
    whole["causal_depth"] = axis(
        "causal_depth", "retained", reading(TRANSFERRED_NAMED, 0.9, 0.0005)
    )
    verdict = decide(whole, FINE, False, "never_taught", Rule(), vocabulary_for(True))
    sentences = [verdict.rule, *verdict.reasons, *verdict.claims_allowed]
    assert verdict.verdict_class == ("not_unlearned" if residual else "suppressed")
    assert not any("answers" in sentence for sentence in sentences)
    assert any("class" in sentence for sentence in sentences)
    if not residual:
        assert verdict.where == ("resid.1",)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("damage", [FINE, WRECK])
@pytest.mark.parametrize("identical", [False, True])
@pytest.mark.parametrize("unchanged", [0.5, 0.001])
def test_without_the_output_words_stay_those_of_what_was_forgotten(
    images, damage, identical, unchanged
):
    inside = {k: v for k, v in axes(unchanged=unchanged).items() if k != "behaviour"}
    floor = "never_taught"
    verdict = decide(inside, damage, identical, floor, Rule(), vocabulary_for(images))
    text = " ".join(
        [
            verdict.rule,
            *verdict.reasons,
            *verdict.claims_allowed,
            *verdict.claims_disallowed,
            *verdict.would_change_it,
        ]
    )
    strange = ("answer", "entit", "item", "said") if images else ("class", "image")
    assert not any(word in text for word in strange)


def test_what_was_not_asked_at_the_output_is_not_spoken_of():
    inside = {k: v for k, v in axes().items() if k != "behaviour"}
    verdict = decide(inside, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "inconclusive"
    assert "behaviour: it was not run" in " ".join(verdict.reasons)
    assert "still said" not in " ".join(verdict.reasons)
    assert "was not asked" in verdict.claims_allowed[0]
