"""Decodability axis for image classifiers: can a linear probe still read the class?

As ``audits.axes.decodability.axis``, with probes of one class
(``audits.axes.decodability.image_probes``). One class is one direction, however many images
there are: a model with a different representation basis puts them on either side of it by
chance. So the original's probe counts only at sites where its probes of the retain classes
still read those classes in the candidate.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from audits.axes.decodability.axis import NAME, REFITTED, UNCHANGED
from audits.axes.judgement import (
    MIN_SPAN,
    MetricComparison,
    compare_to_floors,
    informative_columns,
)
from audits.axes.status import failed_controls, status_from_readings
from audits.core.config import AuditConfig
from audits.modalities.image_baseline import (
    MIN_DIFFERENCE,
    EvaluationSets,
    image_values,
)
from audits.run.planting import planted_control
from evidence.equivalence import readings_above_floor
from evidence.hypothesis_tests import paired_max_test, unpaired_max_test
from evidence.intervals import EntityValues, average_models
from evidence.results import AxisResult, Control, Reading, Status
from evidence.seeds import numpy_rng

QUESTION = "Can a linear reader of the states still tell the forgotten class?"
STATISTIC_NAME = "other classes' images outranked (chance 0.5)"
MIN_BASIS_KEPT = 0.5
"""Minimum share of the original's excess on retain classes for a shared basis."""


def judge(
    sets: EvaluationSets,
    sites: list[str],
    original_scores: Mapping[str, dict[str, Any]],
    refitted_scores: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    notes: tuple[str, ...],
) -> AxisResult:
    """Judge the axis from the probes' scores.

    Args:
        original_scores: By role, as ``image_probes.score_original_probes``.
        refitted_scores: By role, as ``image_probes.score_refitted_probes``.
    """

    def of(found: Mapping[str, dict[str, Any]], role: str, part: str) -> EntityValues:
        return image_values(
            found[role][part], sets.forget if part == "forget" else sets.never
        )

    permutations = config.budget.permutations
    ceiling, floor = (
        of(original_scores, "original", "forget"),
        of(original_scores, "original", "never"),
    )
    rng = numpy_rng(config.seed, NAME, "original")
    power = unpaired_max_test(ceiling.values, floor.values, rng, permutations)
    strong = informative_columns(power, config.rule)
    code = {role: basis_kept(original_scores, role) for role in original_scores}
    use = strong & (code["unlearned"] >= MIN_BASIS_KEPT)
    references = [role for role in original_scores if role.startswith("reference")]
    # A reference with a different representation basis gives no floor.
    alike = [role for role in references if (code[role][use] >= MIN_BASIS_KEPT).all()]
    extra: list[str] = []
    first: list[Reading] = []
    second: list[Reading] = []
    if use.any():
        found = compare_to_floors(
            NAME,
            [
                MetricComparison(
                    UNCHANGED,
                    UNCHANGED,
                    of(original_scores, "unlearned", "forget"),
                    ceiling,
                    [of(original_scores, role, "forget") for role in alike],
                    of(original_scores, "unlearned", "never"),
                    min_difference=MIN_DIFFERENCE,
                )
            ],
            sites,
            config,
            use,
        )
        first, second = found[:1], found[1:]
        if len(alike) < len(references):
            extra.append(
                f"{len(references) - len(alike)} of {len(references)} references have "
                "another code, in which the original's probe reads nothing; they are "
                "no floor for it."
            )
    elif strong.any():
        extra.append(
            "The candidate has another code: the original's probes of the classes that "
            "stay do not read them in it, so its probe of the class says nothing."
        )
    again, why = _refitted(of, refitted_scores, references, sites, config)
    first, second = first + again[:1], second + again[1:]
    extra += why
    controls = _controls(of, original_scores, strong, ceiling, config)
    status, said = _status(first, controls, config)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=(*first, *second),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "sites": sites,
            "used": [site for site, used in zip(sites, use, strict=True) if used],
            "code_kept": {role: np.round(x, 4).tolist() for role, x in code.items()},
            "own_by_site": _means(original_scores),
            "refitted_by_site": _means(refitted_scores),
        },
        notes=(*said, *extra, *notes),
    )


def basis_kept(original_scores: Mapping[str, dict[str, Any]], role: str) -> np.ndarray:
    """(site,) share of the original's excess on retain classes that a model keeps."""
    here = np.array(original_scores[role]["classes"]) - 0.5
    there = np.array(original_scores["original"]["classes"]) - 0.5
    return here / np.maximum(there, 1e-9)


def _refitted(
    of, refitted: Mapping[str, dict[str, Any]], references: list[str], sites, config
) -> tuple[list[Reading], list[str]]:
    """Readings of the refitted probe, against the floors at which it has power."""
    ceiling = of(refitted, "original", "forget")
    known = [of(refitted, role, "forget") for role in references]
    never = of(refitted, "original", "never")
    readings: list[Reading] = []
    for floors in [known, []] if known else [[]]:
        floor = average_models(floors) if floors else never
        test = (paired_max_test if floors else unpaired_max_test)(
            ceiling.values,
            floor.values,
            numpy_rng(config.seed, NAME, REFITTED, "references" if floors else "never"),
            config.budget.permutations,
        )
        use = informative_columns(test, config.rule)
        if not use.any():
            continue
        wanted = MetricComparison(
            REFITTED,
            REFITTED,
            of(refitted, "unlearned", "forget"),
            ceiling,
            floors,
            of(refitted, "unlearned", "never"),
        )
        readings.append(compare_to_floors(NAME, [wanted], sites, config, use)[0])
    primary = "reference" if known else "never_taught"
    if readings and readings[0].floor_kind == primary:
        return readings, []
    floor = average_models(known) if known else never
    return [], [
        f"A refitted probe says nothing here: it reads {ceiling.mean.max():.2f} in the "
        f"original and {floor.mean.max():.2f} where nothing was known. What tells the "
        "other classes apart tells an unseen one from them as well."
    ]


def _controls(
    of,
    own: Mapping[str, dict[str, Any]],
    strong: np.ndarray,
    ceiling: EntityValues,
    config: AuditConfig,
) -> list[Control]:
    """Controls: power, shuffled labels, random directions, the planted suppression."""
    alpha, never = config.rule.alpha, of(own, "original", "never")
    rng = numpy_rng(config.seed, NAME, "original")
    power = unpaired_max_test(
        ceiling.values, never.values, rng, config.budget.permutations
    )
    found = [
        Control(
            "the original is read beyond never-taught images",
            power.p_value,
            f"p < {alpha} and at least {MIN_SPAN} apart",
            bool(strong.any()),
        )
    ]
    excess = np.maximum(ceiling.mean - 0.5, 1e-9)
    for name, what in (
        ("probes fitted on shuffled classes read nothing", "shuffled"),
        ("random directions read nothing", "random"),
    ):
        most = float(((np.array(own["original"][what]) - 0.5) / excess).max())
        found.append(
            Control(name, most, "below half of the original's excess", most < 0.5)
        )
    if "planted" in own and strong.any():
        test = unpaired_max_test(
            of(own, "planted", "forget").values[:, strong],
            of(own, "planted", "never").values[:, strong],
            numpy_rng(config.seed, NAME, "planted"),
            config.budget.permutations,
        )
        found.append(planted_control(test.p_value, alpha))
    return found


def _status(
    first: list[Reading], controls: list[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    Only the refitted probe can show absence. The original's probe is a single direction, and no
    floor says where that direction lies in a model that never knew the class.
    """
    failed = failed_controls(controls)
    if failed:
        status: Status = "control_failed" if first else "no_power"
        return status, [f"Control failed: {name}." for name in failed]
    rule, named = config.rule, {each.name: each for each in first}
    if readings_above_floor(named, rule.recovery, rule.still_there):
        return "retained", []
    if REFITTED not in named:
        return "no_power", [
            "The original's probe can show that the class is there, not that it is "
            "gone; that takes a refitted one and a model retrained without the class."
        ]
    return status_from_readings([named[REFITTED]], rule)


def _means(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        role: {
            part: np.round(np.mean(each[part], axis=0), 4).tolist()
            for part in ("forget", "never")
        }
        for role, each in found.items()
    }
