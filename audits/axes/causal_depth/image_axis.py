"""Causal-depth axis for image classifiers: patch the candidate's states into the original.

The candidate's states of an image, at one site and at all positions, replace the original's;
the class that the original then predicts comes from those states. Sites in the first half of
the blocks are left out: their states still encode the picture itself, and a retrain from the
same starting weights computes the same (``image_baseline.late_sites``).

Source: as ``audits.axes.causal_depth.axis``.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from audits.axes.causal_depth.axis import MIN_TRANSFER_SHARE, NAME
from audits.axes.judgement import (
    MetricComparison,
    compare_to_floors,
    informative_columns,
    planted_control,
    power_control,
    status_with_controls,
    unpaired_test,
)
from audits.core.config import AuditConfig
from audits.core.context import AuditedModel, reference_roles
from audits.core.preflight import Damage
from audits.modalities.image_baseline import MIN_DIFFERENCE, EvaluationSets, image_values
from audits.modalities.image_vocabulary import TRANSFERRED_NAMED
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from evidence.intervals import EntityValues
from evidence.results import AxisResult, Control

QUESTION = "Do the original's later blocks still find the class in the candidate?"
STATISTIC_NAME = "share of images named as the class from carried states"


def transfer_states(
    original: AuditedModel, donor: AuditedModel, sets: EvaluationSets, sites: list[str], device: str
) -> dict[str, Any]:
    """Class predictions of the original from a model's states; JSON-ready.

    Returns:
        (image, site) tables of 1.0 and 0.0: ``forget`` and ``never``: predicted as the
        forgotten class; ``check``: predicted as the image's own class.
    """
    tables: dict[str, Any] = {}
    with donor.loaded(device) as giver, original.loaded(device) as receiver:
        for part, images in (("forget", sets.forget), ("never", sets.never), ("check", sets.check)):
            label = images.labels if part == "check" else sets.label
            named = [
                (_named(receiver, giver, images, site) == label).astype(float) for site in sites
            ]
            tables[part] = np.stack(named, axis=1).tolist()
    return tables


def _named(receiver: nn.Module, donor: nn.Module, images: ImageSet, site: str) -> np.ndarray:
    """(image,) class the receiver predicts from the giver's states of the same image."""
    states = image_states(donor, images, [site], find_image_sites(donor))[site]
    edits = {site: replacing_states(states)}
    return logits_with_edits(receiver, images, edits, find_image_sites(receiver)).argmax(1).numpy()


def replacing_states(states: Tensor) -> Edit:
    """An edit that substitutes ``states`` image by image, in the order of the batches."""
    done = 0

    def edit(value: Tensor) -> Tensor:
        nonlocal done
        batch = states[done : done + len(value)].to(value)
        done += len(value)
        return batch

    return edit


def judge(
    sets: EvaluationSets,
    sites: list[str],
    scores: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    damage: Damage,
    notes: tuple[str, ...],
) -> AxisResult:
    """Judge the axis from the tables.

    Args:
        scores: By role, as ``transfer_states``.
        damage: Utility of the candidate.
    """

    def of(role: str, part: str) -> EntityValues:
        return image_values(scores[role][part], sets.forget if part == "forget" else sets.never)

    alpha = config.rule.alpha
    ceiling, never_taught = of("original", "forget"), of("original", "never")
    power = unpaired_test(ceiling, never_taught, config, NAME, "original")
    decodable = informative_columns(power, config.rule)
    transfer_share = {role: _transfer_share(scores, role) for role in scores}
    mask = decodable & (transfer_share["unlearned"] >= MIN_TRANSFER_SHARE)
    references = reference_roles(scores)
    same_basis = [
        role
        for role in references
        if mask.any() and (transfer_share[role][mask] >= MIN_TRANSFER_SHARE).all()
    ]
    controls = [
        power_control(
            "the original's own states carry the class", power, alpha, bool(decodable.any())
        ),
        Control(
            "the candidate still names what it should keep",
            float(min(damage.shares.values(), default=1.0)),
            "not damaged: a loss would be wreckage, not depth",
            not damage.found,
        ),
        Control(
            "the candidate's states carry classes it should keep",
            float(transfer_share["unlearned"].max()),
            f"at least {MIN_TRANSFER_SHARE} of the original's, at some site",
            bool(mask.any()),
        ),
    ]
    if decodable.any():
        controls += _controls(of, scores, decodable, config)
    readings = []
    if mask.any():
        comparison = MetricComparison(
            TRANSFERRED_NAMED,
            TRANSFERRED_NAMED,
            of("unlearned", "forget"),
            ceiling,
            [of(role, "forget") for role in same_basis],
            of("unlearned", "never"),
            min_residual=MIN_DIFFERENCE,
        )
        readings = compare_to_floors(NAME, [comparison], sites, config, mask)
    status, extra = status_with_controls(readings[:1], controls, config.rule)
    if len(same_basis) < len(references):
        extra.append(
            f"{len(references) - len(same_basis)} of {len(references)} references have "
            "another code, whose states the original cannot read; they are no floor."
        )
    return AxisResult(
        NAME,
        QUESTION,
        status,
        STATISTIC_NAME,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "sites": sites,
            "used": [site for site, used in zip(sites, mask, strict=True) if used],
            "carried": {
                role: {
                    part: np.round(np.mean(table, axis=0), 4).tolist()
                    for part, table in tables.items()
                }
                for role, tables in scores.items()
            },
        },
        notes=(*extra, *notes),
    )


def _transfer_share(scores: Mapping[str, dict[str, Any]], role: str) -> np.ndarray:
    """(site,) share of the original's transferred accuracy on other classes."""
    own_share, original_share = (
        np.mean(scores[name]["check"], axis=0) for name in (role, "original")
    )
    return own_share / np.maximum(original_share, 1e-9)


def _controls(
    of, scores: Mapping[str, dict[str, Any]], decodable: np.ndarray, config: AuditConfig
) -> list[Control]:
    """Controls: never-taught images and the planted suppression."""
    ceiling, never_taught = of("original", "forget"), of("original", "never")
    leak = float((never_taught.mean[decodable] / ceiling.mean[decodable]).max())
    controls = [
        Control(
            "never-taught images are not carried",
            leak,
            "below 0.25 of the original's own",
            leak < 0.25,
        )
    ]
    if "planted" in scores:
        test = unpaired_test(
            of("planted", "forget"), of("planted", "never"), config, NAME, "planted", mask=decodable
        )
        controls.append(planted_control(test.p_value, config.rule.alpha))
    return controls
