"""The rule as a truth table: what fires, in which order, and what may never fire."""

from dataclasses import replace

import pytest

from audits.core.config import Rule
from audits.core.preflight import Damage
from audits.core.registry import AXES, MODALITIES, load_axis
from audits.verdict.rule import decide
from capture.network.untouched import Untouched
from evidence.results import AxisResult, Column, Control, ControlId, OnFailure, Reading

FINE = Damage({"retain accuracy": 1.0}, ())
WRECK = Damage({"retain accuracy": 0.1}, ("retain accuracy is 10 %",))
PLANTED = Control(
    ControlId.PLANTED, "the planted suppression is found", 0.001, "p < 0.05", True, kind="p_value"
)
UNSEEN = replace(PLANTED, value=0.5, passed=False)


def column(residual, p, spread, name="resid.1"):
    return Column(
        name=name,
        used=True,
        statistic=residual,
        interval=(max(0, residual - spread), residual + spread),
        floor=0.0,
        ceiling=1.0,
        difference=residual,
        tost=(residual - spread, residual + spread),
        p_value=p,
    )


def reading(metric, residual, p, spread=0.1):
    return Reading(
        name=f"the {metric}",
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
        columns=(column(residual, p, spread),),
        metric=metric,
    )


def axis(name, status, *readings, controls=(PLANTED,)):
    return AxisResult(name, "?", status, "s", tuple(readings), tuple(controls), 24)


def axes(
    behaviour="absent",
    unchanged=0.9,
    refitted=0.9,
    relearned=0.9,
    contrast=0.9,
    front=0.9,
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
            reading("exact_match", 1.0 if behaviour == "retained" else 0.0, 0.5),
            reading("contrast", level(contrast), contrast),
            controls=(),
        ),
        "decodability": axis(
            "decodability",
            probe,
            reading("refitted_probe", level(refitted), refitted),
            reading("original_probe", level(unchanged), unchanged),
            controls=controls,
        ),
        "relearning": axis(
            "relearning",
            attack,
            reading("contrast", level(relearned), relearned),
            reading("exact_match", 0.0, 0.9),
            controls=controls,
        ),
        "front_transplant": front_axis(front, controls=controls),
    }


def front_axis(p=0.9, metric="exact_match", site="embed", controls=(PLANTED,)):
    """The front transplant, after the original's states at one site."""
    found = p < 0.05
    level = 0.8 if found else 0.0
    after = replace(reading(metric, level, p), where=site, columns=(column(level, p, 0.1, site),))
    return axis("front_transplant", "retained" if found else "absent", after, controls=controls)


def with_depth(found, contrast=0.9, exact_match=0.9, status=None):
    """The axes and causal depth beside them."""
    kept = min(contrast, exact_match) < 0.05
    return found | {
        "causal_depth": axis(
            "causal_depth",
            status or ("retained" if kept else "absent"),
            reading("contrast", 0.8 if contrast < 0.05 else 0.0, contrast),
            reading("exact_match", 0.8 if exact_match < 0.05 else 0.0, exact_match),
        )
    }


def back_from(block, n_blocks=8):
    """A candidate whose blocks from this one on are the original's."""
    return Untouched(False, tuple(range(block, n_blocks)), True, n_blocks)


def without(found, name):
    """The axes without one of them."""
    return {key: each for key, each in found.items() if key != name}


def word(found, damage=FINE, identical=False):
    return decide(found, damage, identical, "never_taught", Rule()).verdict_class


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (axes(), "deleted"),
        (axes(behaviour="retained"), "not_unlearned"),
        (axes(unchanged=0.001), "suppressed"),
        (axes(relearned=0.001), "suppressed"),
        (axes(front=0.001), "suppressed"),
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
    small = reading("original_probe", residual, 0.0005, spread)
    within = residual + spread < Rule().margin
    status = "absent" if within else "no_power"
    none = reading("refitted_probe", 0.0, 0.9)
    found["decodability"] = axis("decodability", status, none, small)
    assert word(found) == expected


def test_why_an_axis_that_found_something_makes_no_suppression():
    def reasons(found):
        return " ".join(decide(found, FINE, False, "never_taught", Rule()).reasons)

    assert "a refitted probe" in reasons(axes(refitted=0.001))
    told_apart = axis("membership", "retained", reading("auc", 0.9, 0.0005))
    assert "membership: its states still separate" in reasons(axes() | {"membership": told_apart})
    images = {"behaviour": axis("behaviour", "absent", reading("named", 0.0, 0.5), controls=())}
    images["restoration"] = axis("restoration", "retained", reading("named", 0.9, 0.0005))
    text = " ".join(decide(images, FINE, False, "never_taught", Rule(), "images").reasons)
    assert "restoration: it finds the class" in text
    assert "no verdict by itself" in text
    # 0.004 is enough for two readings of one axis, not for three of two.
    weak = axes()
    own = reading("original_probe", 0.8, 0.004)
    none = reading("refitted_probe", 0.0, 0.9)
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
    low, high = (end / 2 for end in ends)
    below = replace(contrast.columns[0], p_value=1.0, tost=(low, high))
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
    assert ("which answers to avoid" in verdict.reasons[0]) == (expected == "inconclusive")


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
    ("name", "metric"),
    [
        ("concept", "concept_vectors"),
        ("restoration", "contrast"),
        ("restoration", "exact_match"),
        ("quantization", "contrast"),
        ("quantization", "exact_match"),
    ],
)
def test_an_axis_with_a_sentence_makes_suppressed_by_itself(name, metric):
    whole = axes()
    whole[name] = axis(name, "retained", reading(metric, 0.9, 0.0005))
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "suppressed"
    assert set(verdict.adjusted_p) >= {f"{name}.{metric}"}
    whole[name] = replace(whole[name], status="control_failed")
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class != "suppressed"


@pytest.mark.parametrize("name", ["restoration", "relearning"])
def test_what_an_image_model_is_brought_to_say_only_blocks_deletion(name):
    whole = {"behaviour": axis("behaviour", "absent", reading("named", 0.0, 0.5), controls=())}
    whole["decodability"] = axes()["decodability"]
    whole["relearning"] = axis("relearning", "absent", reading("named", 0.0, 0.9))
    whole["front_transplant"] = front_axis(metric="named")
    assert decide(whole, FINE, False, "never_taught", Rule(), "images").verdict_class == "deleted"
    whole[name] = axis(name, "retained", reading("named", 0.9, 0.0005))
    verdict = decide(whole, FINE, False, "never_taught", Rule(), "images")
    assert verdict.verdict_class == "inconclusive"
    assert f"{name}.named" not in verdict.adjusted_p


@pytest.mark.parametrize("residual", [0.0, 0.9])
def test_a_class_of_images_is_told_of_in_its_own_words(residual):
    named = reading("named", residual, 0.5 if residual == 0 else 0.0005)
    whole = axes()
    whole["behaviour"] = axis("behaviour", "retained" if residual else "absent", named, controls=())
    whole["relearning"] = axis("relearning", "absent", reading("named", 0.0, 0.9))
    whole["causal_depth"] = axis("causal_depth", "retained", reading("named", 0.9, 0.0005))
    whole["front_transplant"] = front_axis(metric="named")
    verdict = decide(whole, FINE, False, "never_taught", Rule(), "images")
    sentences = [verdict.rule, *verdict.reasons, *verdict.claims_allowed]
    assert verdict.verdict_class == ("not_unlearned" if residual else "suppressed")
    assert not any("answers" in sentence for sentence in sentences)
    assert any("class" in sentence for sentence in sentences)
    if not residual:
        assert verdict.where == ("resid.1",)


def test_only_sites_beyond_the_floor_are_named_and_only_where_columns_are_sites():
    whole = axes(unchanged=0.001)
    refitted, unchanged = whole["decodability"].readings
    sites = (column(0.8, 0.001, 0.1), column(0.1, 0.4, 0.1, "resid.2"))
    unread = replace(column(0.9, 0.0, 0.1, "embed"), used=False, p_value=None)
    unchanged = replace(unchanged, columns=(unread, *sites))
    whole["decodability"] = replace(whole["decodability"], readings=(refitted, unchanged))
    assert decide(whole, FINE, False, "never_taught", Rule()).where == ("resid.1",)
    # A checkpoint of relearning is no site.
    assert decide(axes(relearned=0.001), FINE, False, "never_taught", Rule()).where == ()


def test_what_finds_a_planted_suppression_is_known_by_its_id():
    named = replace(PLANTED, id=ControlId.POWER)
    assert word(axes(controls=(named,))) == "inconclusive"
    other = replace(PLANTED, name="in other words")
    assert word(axes(controls=(other,))) == "deleted"
    # One axis that missed it is enough, whatever a miss means for that axis.
    missed = axes()
    unseen = replace(UNSEEN, on_failure=OnFailure.NO_ABSENCE)
    missed["relearning"] = replace(missed["relearning"], controls=(unseen,))
    assert word(missed) == "inconclusive"


def test_on_the_floor_of_other_entities_answers_nothing_is_called_deleted():
    found = decide(axes(), FINE, False, "permuted", Rule())
    assert found.verdict_class == "inconclusive"
    assert "answers of other entities" in found.reasons[0]
    # What can be shown there is shown.
    assert decide(axes(behaviour="retained"), FINE, False, "permuted", Rule()).verdict_class == (
        "not_unlearned"
    )


def test_answers_given_after_the_lead_in_are_suppressed():
    found = axes()
    behaviour = found["behaviour"]
    prefilled = replace(reading("prefilled", 0.9, 0.0005), primary=True)
    found["behaviour"] = replace(behaviour, readings=(*behaviour.readings, prefilled))
    verdict = decide(found, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "suppressed"
    assert "once it begins as the original does" in verdict.reasons[0]


def test_a_likelihood_above_its_floor_is_a_trace_that_blocks_deletion():
    found = axes()
    behaviour = found["behaviour"]
    likely = replace(reading("answer_probability", 0.4, 0.0005), primary=True)
    found["behaviour"] = replace(behaviour, readings=(*behaviour.readings, likely))
    verdict = decide(found, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "inconclusive" and "residual trace" in verdict.reasons[0]


def test_a_reading_against_the_other_floor_decides_nothing():
    whole = axes()
    other = replace(reading("original_probe", 0.9, 0.0005), primary=False)
    decodability = whole["decodability"]
    whole["decodability"] = replace(decodability, readings=(*decodability.readings, other))
    verdict = decide(whole, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "deleted"
    assert verdict.adjusted_p["decodability.original_probe"] > 0.5


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_metric_that_can_be_named_by_a_verdict_has_a_sentence_for_it(modality):
    forms = {name: load_axis(name).spec.forms.get(modality) for name in AXES}
    for name, form in forms.items():
        for metric in form.metrics if form is not None else ():
            found = {
                "behaviour": axis("behaviour", "absent", controls=()),
                name: axis(name, "retained", reading(metric.id, 0.9, 0.0005)),
            }
            verdict = decide(found, FINE, False, "never_taught", Rule(), modality)
            if name == "behaviour":
                assert verdict.verdict_class != "suppressed"
                continue
            suppressed = verdict.verdict_class == "suppressed"
            assert suppressed == bool(metric.finding)
            assert suppressed == (f"{name}.{metric.id}" in verdict.adjusted_p)
            # No placeholder is left, and the figure is there.
            assert "{" not in " ".join(verdict.reasons)
            assert ("original 1.00, floor 0.00" in verdict.reasons[0]) == suppressed


@pytest.mark.parametrize("modality", ["text", "images"])
@pytest.mark.parametrize("damage", [FINE, WRECK])
@pytest.mark.parametrize("identical", [False, True])
@pytest.mark.parametrize("unchanged", [0.5, 0.001])
def test_without_the_output_words_stay_those_of_what_was_forgotten(
    modality, damage, identical, unchanged
):
    inside = {k: v for k, v in axes(unchanged=unchanged).items() if k != "behaviour"}
    if modality == "images":
        inside["relearning"] = axis("relearning", "absent", reading("named", 0.0, 0.9))
        inside["front_transplant"] = front_axis(metric="named")
    verdict = decide(inside, damage, identical, "never_taught", Rule(), modality, back_from(1))
    text = " ".join(
        [
            verdict.rule,
            *verdict.reasons,
            *verdict.claims_allowed,
            *verdict.claims_disallowed,
            *verdict.would_change_it,
        ]
    )
    of_text, of_images = ("answer", "entit", "item", "said", "given"), ("class", "image")
    strange = of_text if modality == "images" else of_images
    assert not any(word in text for word in strange)


def test_what_was_not_asked_at_the_output_is_not_spoken_of():
    inside = {k: v for k, v in axes().items() if k != "behaviour"}
    verdict = decide(inside, FINE, False, "never_taught", Rule())
    assert verdict.verdict_class == "inconclusive"
    assert "behaviour: it was not run" in " ".join(verdict.reasons)
    assert "still given" not in " ".join(verdict.reasons)
    assert "was not asked" in verdict.claims_allowed[0]


@pytest.mark.parametrize("name", Rule().required_for_deleted)
def test_deletion_needs_every_required_axis(name):
    assert word(axes()) == "deleted"
    assert word(without(axes(), name)) == "inconclusive"
    silenced = axes()
    silenced[name] = replace(silenced[name], status="no_power")
    assert word(silenced) == "inconclusive"


def test_deletion_needs_a_suppression_found_that_was_planted_early():
    blind = axes()
    blind["front_transplant"] = replace(blind["front_transplant"], controls=(UNSEEN,))
    assert word(blind) == "inconclusive"


@pytest.mark.parametrize(
    ("site", "back", "expected"),
    [
        ("embed", None, "deleted"),
        ("embed", 0, "deleted"),
        ("embed", 1, "inconclusive"),
        ("resid.0", 1, "deleted"),
        ("resid.4", 1, "deleted"),
        ("resid.4", 6, "inconclusive"),
    ],
)
def test_an_untouched_back_must_have_been_given_the_originals_states(site, back, expected):
    found = axes()
    found["front_transplant"] = front_axis(site=site)
    untouched = None if back is None else back_from(back)
    verdict = decide(found, FINE, False, "never_taught", Rule(), untouched=untouched)
    assert verdict.verdict_class == expected
    if expected == "inconclusive":
        assert "bit for bit" in verdict.reasons[0]


def test_without_the_front_transplant_no_untouched_back_is_deleted():
    rule = Rule(required_for_deleted=("decodability", "relearning"))
    found = without(axes(), "front_transplant")
    assert decide(found, FINE, False, "never_taught", rule).verdict_class == "deleted"
    barred = decide(found, FINE, False, "never_taught", rule, untouched=back_from(0))
    assert barred.verdict_class == "inconclusive"


def holding(held, sites=("resid.0", "resid.1", "resid.2", "resid.3")):
    """The axes, with what readers find in the original's states at each site."""
    found = with_depth(axes())
    details = {"sites": list(sites), "held": list(held)}
    found["causal_depth"] = replace(found["causal_depth"], details=details)
    return found


@pytest.mark.parametrize(
    ("held", "blocks", "expected"),
    [
        # The answers come to be held in block 1.
        ((0.1, 0.95, 1.0, 1.0), (0, 1, 2), "inconclusive"),
        ((0.1, 0.95, 1.0, 1.0), (0, 2, 3), "deleted"),
        ((0.1, 0.7, 1.0, 1.0), (1, 2), "inconclusive"),
        ((0.1, 0.7, 1.0, 1.0), (2, 3), "deleted"),
        # In the first block already.
        ((0.95, 1.0, 1.0, 1.0), (0,), "inconclusive"),
        ((0.95, 1.0, 1.0, 1.0), (1, 2, 3), "deleted"),
        # Not known.
        ((0.1, 0.2, 0.3, 0.4), (0, 1, 2, 3), "deleted"),
        ((), (0, 1, 2, 3), "deleted"),
    ],
)
def test_untouched_blocks_in_which_the_answers_come_to_be_held_block_deletion(
    held, blocks, expected
):
    found = holding(held, sites=("resid.0", "resid.1", "resid.2", "resid.3")[: len(held)])
    # Both ends were edited, so that there is no untouched back.
    untouched = Untouched(False, blocks, False, 4)
    verdict = decide(found, FINE, False, "never_taught", Rule(), untouched=untouched)
    assert verdict.verdict_class == expected
    if expected == "inconclusive":
        assert "come to hold" in verdict.reasons[0]
