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

from audits.axes.causal_depth.axis import CHANNEL, NAME
from audits.axes.judgement import LEAST_SPAN, Wanted, against_floors, telling
from audits.axes.restoration.image_routes import image_sites, read_logits, states_of
from audits.axes.status import controlled
from audits.core.config import AuditConfig
from audits.core.preflight import Damage
from audits.core.subjects import Subject
from audits.modalities.image_baseline import HALFWAY, Cast, values
from audits.modalities.image_vocabulary import CARRIED
from audits.run.planting import planted_seen
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from evidence.hypothesis_tests import unpaired_max_test
from evidence.intervals import EntityValues
from evidence.results import AxisResult, Control
from evidence.seeds import numpy_rng

QUESTION = "Do the original's later blocks still find the class in the candidate?"
LABEL = "share of images named as the class from carried states"


def carry(
    original: Subject, subject: Subject, sets: Cast, sites: list[str], device: str
) -> dict[str, Any]:
    """Class predictions of the original from a model's states; JSON-ready.

    Returns:
        (image, site) tables of 1.0 and 0.0: ``forget`` and ``never``: predicted as the
        forgotten class; ``check``: predicted as the image's own class.
    """
    found: dict[str, Any] = {}
    with subject.loaded(device) as giver, original.loaded(device) as receiver:
        for part, images in (
            ("forget", sets.forget),
            ("never", sets.never),
            ("check", sets.check),
        ):
            label = images.labels if part == "check" else sets.label
            named = [
                (_named(receiver, giver, images, site) == label).astype(float)
                for site in sites
            ]
            found[part] = np.stack(named, axis=1).tolist()
    return found


def _named(
    receiver: nn.Module, giver: nn.Module, images: ImageSet, site: str
) -> np.ndarray:
    """(image,) class the receiver predicts from the giver's states of the same image."""
    states = states_of(giver, images, [site], image_sites(giver))[site]
    edits = {site: replacing(states)}
    return read_logits(receiver, images, edits, image_sites(receiver)).argmax(1).numpy()


def replacing(states: Tensor) -> Edit:
    """An edit that substitutes ``states`` image by image, in the order of the batches."""
    done = 0

    def edit(value: Tensor) -> Tensor:
        nonlocal done
        here = states[done : done + len(value)].to(value)
        done += len(value)
        return here

    return edit


def judge(
    sets: Cast,
    sites: list[str],
    carried: Mapping[str, dict[str, Any]],
    config: AuditConfig,
    damage: Damage,
    notes: tuple[str, ...],
) -> AxisResult:
    """Judge the axis from the tables.

    Args:
        carried: By role, as ``transfer_states``.
        damage: Utility of the candidate.
    """

    def of(role: str, part: str) -> EntityValues:
        return values(
            carried[role][part], sets.forget if part == "forget" else sets.never
        )

    permutations, alpha = config.budget.permutations, config.rule.alpha
    ceiling, never = of("original", "forget"), of("original", "never")
    rng = numpy_rng(config.seed, NAME, "original")
    power = unpaired_max_test(ceiling.values, never.values, rng, permutations)
    strong = telling(power, config.rule)
    kept = {role: _kept(carried, role) for role in carried}
    use = strong & (kept["unlearned"] >= CHANNEL)
    references = [role for role in carried if role.startswith("reference")]
    alike = [
        role for role in references if use.any() and (kept[role][use] >= CHANNEL).all()
    ]
    controls = [
        Control(
            "the original's own states carry the class",
            power.p_value,
            f"p < {alpha} and at least {LEAST_SPAN} apart",
            bool(strong.any()),
        ),
        Control(
            "the candidate still names what it should keep",
            float(min(damage.shares.values(), default=1.0)),
            "not damaged: a loss would be wreckage, not depth",
            not damage.found,
        ),
        Control(
            "the candidate's states carry classes it should keep",
            float(kept["unlearned"].max()),
            f"at least {CHANNEL} of the original's, at some site",
            bool(use.any()),
        ),
    ]
    if strong.any():
        controls += _controls(of, carried, strong, config)
    readings = []
    if use.any():
        wanted = Wanted(
            CARRIED,
            CARRIED,
            of("unlearned", "forget"),
            ceiling,
            [of(role, "forget") for role in alike],
            of("unlearned", "never"),
            least=HALFWAY,
        )
        readings = against_floors(NAME, [wanted], sites, config, use)
    status, extra = controlled(readings[:1], controls, config.rule)
    if len(alike) < len(references):
        extra.append(
            f"{len(references) - len(alike)} of {len(references)} references have "
            "another code, whose states the original cannot read; they are no floor."
        )
    return AxisResult(
        NAME,
        QUESTION,
        status,
        LABEL,
        readings=tuple(readings),
        controls=tuple(controls),
        n_entities=len(sets.forget),
        details={
            "sites": sites,
            "used": [site for site, used in zip(sites, use, strict=True) if used],
            "carried": {
                role: {
                    part: np.round(np.mean(table, axis=0), 4).tolist()
                    for part, table in each.items()
                }
                for role, each in carried.items()
            },
        },
        notes=(*extra, *notes),
    )


def _kept(carried: Mapping[str, dict[str, Any]], role: str) -> np.ndarray:
    """(site,) share of the original's transferred accuracy on other classes."""
    here, there = (np.mean(carried[who]["check"], axis=0) for who in (role, "original"))
    return here / np.maximum(there, 1e-9)


def _controls(
    of, carried: Mapping[str, dict[str, Any]], strong: np.ndarray, config: AuditConfig
) -> list[Control]:
    """Controls: never-taught images and the planted suppression."""
    ceiling, never = of("original", "forget"), of("original", "never")
    leak = float((never.mean[strong] / ceiling.mean[strong]).max())
    found = [
        Control(
            "never-taught images are not carried",
            leak,
            "below 0.25 of the original's own",
            leak < 0.25,
        )
    ]
    if "planted" in carried:
        test = unpaired_max_test(
            of("planted", "forget").values[:, strong],
            of("planted", "never").values[:, strong],
            numpy_rng(config.seed, NAME, "planted"),
            config.budget.permutations,
        )
        found.append(planted_seen(test.p_value, config.rule.alpha))
    return found
