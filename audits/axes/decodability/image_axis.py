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
    MetricComparison,
    compare_to_floors,
    failed_controls,
    informative_columns,
    planted_control,
    power_control,
    status_from_readings,
    unpaired_test,
)
from audits.core.config import AuditConfig
from audits.core.context import reference_roles
from audits.modalities.image_baseline import MIN_DIFFERENCE, EvaluationSets, image_values
from evidence.hypothesis_tests import paired_max_test, readings_above_floor, unpaired_max_test
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
        return image_values(found[role][part], sets.forget if part == "forget" else sets.never)

    ceiling, floor = (
        of(original_scores, "original", "forget"),
        of(original_scores, "original", "never"),
    )
    power = unpaired_test(ceiling, floor, config, NAME, "original")
    decodable = informative_columns(power, config.rule)
    basis = {role: basis_kept(original_scores, role) for role in original_scores}
    mask = decodable & (basis["unlearned"] >= MIN_BASIS_KEPT)
    references = reference_roles(original_scores)
    # A reference with a different representation basis gives no floor.
    same_basis = [role for role in references if (basis[role][mask] >= MIN_BASIS_KEPT).all()]
    extra: list[str] = []
    primary: list[Reading] = []
    secondary: list[Reading] = []
    if mask.any():
        found = compare_to_floors(
            NAME,
            [
                MetricComparison(
                    UNCHANGED,
                    UNCHANGED,
                    of(original_scores, "unlearned", "forget"),
                    ceiling,
                    [of(original_scores, role, "forget") for role in same_basis],
                    of(original_scores, "unlearned", "never"),
                    min_residual=MIN_DIFFERENCE,
                )
            ],
            sites,
            config,
            mask,
        )
        primary, secondary = found[:1], found[1:]
        if len(same_basis) < len(references):
            extra.append(
                f"{len(references) - len(same_basis)} of {len(references)} references have "
                "another code, in which the original's probe reads nothing; they are "
                "no floor for it."
            )
    elif decodable.any():
        extra.append(
            "The candidate has another code: the original's probes of the classes that "
            "stay do not read them in it, so its probe of the class says nothing."
        )
    refitted_readings, refitted_notes = _refitted(of, refitted_scores, references, sites, config)
    primary, secondary = (primary + refitted_readings[:1], secondary + refitted_readings[1:])
    extra += refitted_notes
    controls = _controls(of, original_scores, decodable, ceiling, config)
    status, status_notes = _status(primary, controls, config)
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=(*primary, *secondary),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "sites": sites,
            "used": [site for site, used in zip(sites, mask, strict=True) if used],
            "code_kept": {role: np.round(x, 4).tolist() for role, x in basis.items()},
            "own_by_site": _means(original_scores),
            "refitted_by_site": _means(refitted_scores),
        },
        notes=(*status_notes, *extra, *notes),
    )


def basis_kept(original_scores: Mapping[str, dict[str, Any]], role: str) -> np.ndarray:
    """(site,) share of the original's excess on retain classes that a model keeps."""
    excess = np.array(original_scores[role]["classes"]) - 0.5
    original_excess = np.array(original_scores["original"]["classes"]) - 0.5
    return excess / np.maximum(original_excess, 1e-9)


def _refitted(
    of, refitted: Mapping[str, dict[str, Any]], references: list[str], sites, config
) -> tuple[list[Reading], list[str]]:
    """Readings of the refitted probe, against the floors at which it has power."""
    ceiling = of(refitted, "original", "forget")
    reference_values = [of(refitted, role, "forget") for role in references]
    never_taught = of(refitted, "original", "never")
    readings: list[Reading] = []
    for floors in [reference_values, []] if reference_values else [[]]:
        floor = average_models(floors) if floors else never_taught
        test = (paired_max_test if floors else unpaired_max_test)(
            ceiling.values,
            floor.values,
            numpy_rng(config.seed, NAME, REFITTED, "references" if floors else "never"),
            config.budget.permutations,
        )
        mask = informative_columns(test, config.rule)
        if not mask.any():
            continue
        comparison = MetricComparison(
            REFITTED,
            REFITTED,
            of(refitted, "unlearned", "forget"),
            ceiling,
            floors,
            of(refitted, "unlearned", "never"),
        )
        readings.append(compare_to_floors(NAME, [comparison], sites, config, mask)[0])
    primary = "reference" if reference_values else "never_taught"
    if readings and readings[0].floor_kind == primary:
        return readings, []
    floor = average_models(reference_values) if reference_values else never_taught
    return [], [
        f"A refitted probe says nothing here: it reads {ceiling.mean.max():.2f} in the "
        f"original and {floor.mean.max():.2f} where nothing was known. What tells the "
        "other classes apart tells an unseen one from them as well."
    ]


def _controls(
    of,
    original_scores: Mapping[str, dict[str, Any]],
    decodable: np.ndarray,
    ceiling: EntityValues,
    config: AuditConfig,
) -> list[Control]:
    """Controls: power, shuffled labels, random directions, the planted suppression."""
    alpha, never_taught = config.rule.alpha, of(original_scores, "original", "never")
    power = unpaired_test(ceiling, never_taught, config, NAME, "original")
    controls = [
        power_control(
            "the original is read beyond never-taught images", power, alpha, bool(decodable.any())
        )
    ]
    excess = np.maximum(ceiling.mean - 0.5, 1e-9)
    for name, part in (
        ("probes fitted on shuffled classes read nothing", "shuffled"),
        ("random directions read nothing", "random"),
    ):
        largest_share = float(((np.array(original_scores["original"][part]) - 0.5) / excess).max())
        controls.append(
            Control(name, largest_share, "below half of the original's excess", largest_share < 0.5)
        )
    if "planted" in original_scores and decodable.any():
        test = unpaired_test(
            of(original_scores, "planted", "forget"),
            of(original_scores, "planted", "never"),
            config,
            NAME,
            "planted",
            mask=decodable,
        )
        controls.append(planted_control(test.p_value, alpha))
    return controls


def _status(
    primary: list[Reading], controls: list[Control], config: AuditConfig
) -> tuple[Status, list[str]]:
    """Decide between retained, absent and neither.

    Only the refitted probe can show absence. The original's probe is a single direction, and no
    floor says where that direction lies in a model that never knew the class.
    """
    failed = failed_controls(controls)
    if failed:
        status: Status = "control_failed" if primary else "no_power"
        return status, [f"Control failed: {name}." for name in failed]
    rule, named = config.rule, {reading.name: reading for reading in primary}
    if readings_above_floor(named, rule.recovery, rule.still_there):
        return "retained", []
    if REFITTED not in named:
        return "no_power", [
            "The original's probe can show that the class is there, not that it is "
            "gone; that takes a refitted one and a model retrained without the class."
        ]
    return status_from_readings([named[REFITTED]], rule)


def _means(scores: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        role: {
            part: np.round(np.mean(tables[part], axis=0), 4).tolist()
            for part in ("forget", "never")
        }
        for role, tables in scores.items()
    }
