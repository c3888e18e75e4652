"""Causal-depth axis: cross-model activation patching from the candidate into the original.

Text: the candidate's hidden states at the last prompt token replace the original's while the
original reads the same question about an invented entity. Answers beyond the floor can only come
from those states. An edit of later blocks leaves every earlier layer intact, so the largest
reading over layers (one minus the smallest loss) decides. The Unlearning Depth Score is reported
beside it.

Images: the candidate's states of an image, at one site and at all positions, replace the
original's; the class that the original then predicts comes from those states. Sites in the first
half of the blocks are left out: their states still encode the picture itself, and a retrain from
the same starting weights computes the same (``audits.modalities.image_sets.late_sites``).

Source: cross-model patching after UDS (arXiv 2605.24614). The unrelated receiver prompt is
ours; it keeps the original from answering from its own memory.
"""

from collections.abc import Mapping
from math import ceil

import numpy as np

from attribution.patching.depth_score import DepthScore, unlearning_depth
from audits.axes.base import Axis, AxisForm, AxisSpec, JudgementContext, readings
from audits.axes.causal_depth.measurement import (
    CONTRAST,
    EXACT_MATCH,
    NAMED,
    LossItem,
    Measurement,
    TextDetails,
    measure_images,
    measure_text,
)
from audits.axes.judgement import (
    MIN_SPAN,
    informative_columns,
    planted_control,
    power_control,
    unpaired_test,
)
from audits.core.cost import Cost, PlanInputs
from audits.core.item_sets import MAX_MEASURED_ENTITIES
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores
from evidence.results import AxisResult, Control, ControlId
from evidence.typed_json import Json, to_json

NAME = "causal_depth"
CHANCE = {CONTRAST.id: 0.5, NAMED.id: 0.0}
"""Score of a guess."""
MIN_TRANSFER_SHARE = 0.5
"""Share of the original's excess over chance on retain items that a site must transfer."""
MAX_RECALLED = 0.5
"""Maximum share of its answers that the original may recall after a site by itself."""
MIN_HELD = 0.9
"""Share of the answers that readers must find in the original's states at a site. A model that was
never taught the facts but shares the original's first blocks names the entity there as well as the
original does: what is not yet held, the original recalls from the name."""
UNREAD = (
    "No relation has enough retain items to tell at which layers the original's states hold the "
    "facts, so every layer counts. A model that shares the original's first blocks may be found "
    "here without the knowledge."
)
MAX_NEVER_TAUGHT = 0.25
"""Maximum excess over chance on never-taught items, as a share of that on forgotten ones."""


def cost(plan: PlanInputs) -> Cost:
    """States of every model, patched into the original site by site."""
    layers = plan.size.n_layers or 1
    if plan.modality == "images":
        # Both halves of every pass at the late sites: the donor's and the receiver's.
        passes, units = 2 * (layers // 2 + 1), plan.units(*Part)
        return Cost(forward=plan.n_models * passes * units, copies=2)
    sites = min(layers, plan.config.budget.depth_sites)
    units = plan.units(Part.FORGET, Part.NEVER_TAUGHT) + plan.main_prompts[Part.FORGET].units
    units = ceil(units * min(1.0, MAX_MEASURED_ENTITIES / len(plan.inputs.forget.entities)))
    # Reading the states, patching them, and patching them again where norms differ.
    return Cost(forward=plan.n_models * (1 + 2 * sites) * units)


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the scores from the candidate's states with the floors, at the sites that count."""
    form, scores, text = SPEC.form(ctx.modality), measured.scores, measured.details is not None
    metric = form.metrics[0].id
    ceiling = scores.values(metric, Role.ORIGINAL)
    never_taught = scores.values(metric, Role.ORIGINAL, Part.NEVER_TAUGHT)
    power = unpaired_test(ceiling, never_taught, ctx.config, NAME, "original")
    # Only sites whose states carry the knowledge in the original itself are informative.
    decodable = informative_columns(power, ctx.rule)
    recalled = _recalled_share(measured)
    # A state that holds no answer yet names the entity, and the original recalls the rest.
    held = np.array(measured.held or np.ones(len(scores.columns)))
    informative = decodable & (recalled < MAX_RECALLED) & (held >= MIN_HELD)
    transferred, readable = _transfer_share(scores, metric)
    mask = informative & readable
    controls = [
        power_control(
            f"the original's own states transfer the {'facts' if text else 'class'}",
            power,
            ctx.rule.alpha,
            bool(decodable.any()),
        ),
        Control(
            ControlId.DAMAGE,
            f"the candidate still {'gives retain answers' if text else 'predicts retain classes'}",
            float(min(ctx.damage.shares.values(), default=1.0)),
            "not damaged: a loss would be damage, not depth",
            not ctx.damage.found,
            kind="ratio",
        ),
    ]
    if measured.held and decodable.any():
        controls.append(
            Control(
                ControlId.EMBEDDING,
                "the original's states hold the facts that they transfer",
                float(held[decodable].max()),
                f"readers fitted on other entities find at least {MIN_HELD} of them in some layer",
                bool((held[decodable] >= MIN_HELD).any()),
            )
        )
    share = transferred[Role.CANDIDATE]
    if not text:
        controls.append(_retain_control("classes", share, "'s, at some site", mask))
    if decodable.any():
        used = informative if informative.any() else decodable
        controls += _controls(measured, metric, used, recalled, ctx)
    if text and informative.any():
        share = share[informative]
        controls.append(_retain_control("facts", share, "'s excess in some layer", mask))
    references = [role for role in scores.roles(metric) if role.is_reference]
    # The original cannot read the states of a model with another representation basis.
    floors = [
        role
        for role in references
        if text or (mask.any() and (transferred[role][mask] >= MIN_TRANSFER_SHARE).all())
    ]
    found = readings(NAME, form.metrics, scores, ctx.config, mask, floors) if mask.any() else []
    notes: list[str] = []
    if len(floors) < len(references):
        notes.append(
            f"{len(references) - len(floors)} of {len(references)} references use a different "
            "representation basis, whose states the original cannot read; they are no floor."
        )
    details: dict[str, Json] = {
        "sites": scores.columns,
        "used": [site for site, used in zip(scores.columns, mask, strict=True) if used],
    }
    if measured.details is not None:
        if measured.held:
            details["held"] = [round(each, 4) for each in measured.held]
        else:
            notes.append(UNREAD)
        details |= _text_details(measured.details)
        notes += _norm_notes(measured.details)
    else:
        details["transferred"] = _mean_by_part(scores)
    return form.result(
        NAME, found, controls, ctx, n_entities=len(ceiling.values), details=details, notes=notes
    )


def _recalled_share(measured: Measurement) -> np.ndarray:
    """(site,) share of its answers that the original recalls by itself.

    States read from a question about another fact of the entity identify the entity, not the
    scored fact. Where they make the original give this fact all the same, its later blocks
    recall the fact by themselves, and the layer says nothing about the candidate.
    """
    scores, details = measured.scores, measured.details
    if details is None or not details.other_fact:
        return np.zeros(len(scores.columns))
    own_match = scores.values(EXACT_MATCH.id, Role.ORIGINAL).mean
    return np.array(details.other_fact) / np.maximum(own_match, 1e-9)


def _transfer_share(
    scores: RoleScores, metric: str
) -> tuple[Mapping[Role, np.ndarray], np.ndarray]:
    """Sites where the candidate's states are readable at all, and the share transferred.

    A model trained from other starting weights uses a different representation basis. Its
    states transfer nothing, and finding no forgotten fact in them is no evidence.

    Returns:
        Role to (site,) share of the original's excess over chance on retain items, and (site,)
        mask of the candidate's readable sites.
    """
    excess = {
        role: scores.values(metric, role, Part.RETAIN).mean - CHANCE[metric]
        for role, by_part in scores.tables[metric].items()
        if Part.RETAIN in by_part
    }
    original = excess[Role.ORIGINAL]
    share = {role: each / np.maximum(original, 1e-9) for role, each in excess.items()}
    return share, (share[Role.CANDIDATE] >= MIN_TRANSFER_SHARE) & (original > MIN_SPAN)


def _retain_control(kept: str, share: np.ndarray, least: str, mask: np.ndarray) -> Control:
    """The candidate's states must transfer retain items."""
    return Control(
        ControlId.RETAIN,
        f"the candidate's states transfer retain {kept}",
        float(share.max()),
        f"at least {MIN_TRANSFER_SHARE} of the original{least}",
        bool(mask.any()),
        kind="ratio",
    )


def _controls(
    measured: Measurement,
    metric: str,
    mask: np.ndarray,
    recalled: np.ndarray,
    ctx: JudgementContext,
) -> list[Control]:
    """Controls: never-taught items, another fact of the entity, the planted suppression."""
    scores, details = measured.scores, measured.details
    forget, never_taught = (
        scores.values(metric, Role.ORIGINAL, part).mean[mask] - CHANCE[metric]
        for part in (Part.FORGET, Part.NEVER_TAUGHT)
    )
    worst = float((never_taught / forget).max())
    controls = [
        Control(
            ControlId.NEVER_TAUGHT,
            f"states of never-taught {'images' if details is None else 'items'} transfer nothing",
            worst,
            f"below {MAX_NEVER_TAUGHT} of the original's {'own' if details is None else 'excess'}",
            worst < MAX_NEVER_TAUGHT,
            kind="ratio",
        )
    ]
    if details is not None and details.other_fact:
        controls.append(
            Control(
                ControlId.OTHER_FACT,
                "states about another fact do not transfer this one",
                float(recalled[mask].min()),
                "below half of what the original's own states transfer, in some layer",
                bool((recalled[mask] < MAX_RECALLED).any()),
                kind="ratio",
            )
        )
    if Role.PLANTED in scores.roles(metric):
        test = unpaired_test(
            scores.values(metric, Role.PLANTED),
            scores.values(metric, Role.PLANTED, Part.NEVER_TAUGHT),
            ctx.config,
            NAME,
            "planted",
            mask=mask,
        )
        controls.append(planted_control(test.p_value, ctx.rule.alpha))
    return controls


def _mean_by_part(scores: RoleScores) -> Json:
    """Role to part to (site,) share of images predicted from its states; see ``Measurement``."""
    shown = {Part.FORGET: "forget", Part.NEVER_TAUGHT: "never", Part.RETAIN: "check"}
    return {
        role: {
            shown[part]: np.round(table.values.mean(0), 4).tolist()
            for part, table in by_part.items()
        }
        for role, by_part in scores.tables[NAMED.id].items()
    }


def _text_details(details: TextDetails) -> dict[str, Json]:
    """Loss by item and layer, UDS against each model that never knew the facts, norms."""
    candidate = details.losses[Role.CANDIDATE]
    result: dict[str, Json] = {
        "depth": {
            name: _depth(unlearning_depth(loss, candidate))
            for name, loss in details.losses.items()
            if name == "unrelated" or Role(name).is_reference
        },
        "loss_items": to_json(details.items, tuple[LossItem, ...]),
        "losses": {name: np.round(loss, 4).tolist() for name, loss in details.losses.items()},
        "norms": details.norms,
    }
    if details.other_fact:
        result["other_fact_exact_match"] = details.other_fact
    if details.unmatched:
        result["contrast_before_norm_matching"] = details.unmatched
    return result


def _depth(depth: DepthScore) -> Json:
    """The depth score; undefined figures are None."""

    def figure(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 4)

    ratios = [figure(value) for value in depth.loss_ratio]
    defined = [value for value in ratios if value is not None]
    return {
        "uds": figure(depth.mean),
        "smallest_loss": figure(depth.min_ratio),
        "mean_loss": round(float(np.mean(defined)), 4) if defined else None,
        "share_beyond": figure(depth.excess_share),
        "loss_by_layer": ratios,
    }


def _norm_notes(details: TextDetails) -> list[str]:
    """A note where states were rescaled to the original's norms."""
    if not details.unmatched:
        return []
    ratios = details.norms[Role.CANDIDATE]
    worst = max(ratios, key=lambda ratio: abs(np.log(max(ratio, 1e-9))))
    return [
        f"The candidate's states are off the original's scale (norms {worst:.2g} times "
        "as large): they were put in with the original's norms there."
    ]


SPEC = AxisSpec(
    NAME,
    {
        "text": AxisForm(
            "Do the original's later blocks still find the facts in the candidate?",
            "share of other answers outranked from transferred states (chance 0.5)",
            (CONTRAST, EXACT_MATCH),
        ),
        "images": AxisForm(
            "Do the original's later blocks still find the class in the candidate?",
            "share of images predicted as the class from transferred states",
            (NAMED,),
            n_deciding=1,
        ),
    },
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge, cost)
