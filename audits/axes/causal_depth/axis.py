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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from attribution.patching.depth_score import DepthScore, unlearning_depth
from audits.axes.base import (
    Axis,
    AxisForm,
    AxisSpec,
    JudgementContext,
    MetricSpec,
    margin,
    readings,
)
from audits.axes.behaviour import known_rows
from audits.axes.causal_depth.state_transfer import (
    OTHER_FACT,
    OWN,
    STRANGER,
    PatchedScores,
    norm_ratios,
    patched_scores,
    patching_prompts,
    read_donors,
)
from audits.axes.judgement import (
    MIN_SPAN,
    informative_columns,
    planted_control,
    power_control,
    unpaired_test,
)
from audits.core.config import Rule
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import MIN_DIFFERENCE, EvaluationSets, image_table, late_sites
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from evidence.results import AxisResult, Control, ControlId
from evidence.storage.typed_json import FloatArray, Json, to_json

NAME = "causal_depth"
# States that encode only the entity, without the fact, still give the original a small
# advantage. So the test is against the margin, not the floor.
CONTRAST = MetricSpec(
    "contrast",
    "carried states, told from the others",
    stream="told",
    finding="The candidate's states at {where}, put into the original, tell them from the "
    "others' answers: {value:.2f}",
    names_sites=True,
    min_residual=margin,
)
EXACT_MATCH = MetricSpec(
    "exact_match",
    "carried states, said",
    stream="said",
    finding="The candidate's states at {where}, put into the original, make it say them: "
    "{value:.2f}",
    names_sites=True,
    min_residual=margin,
)


def min_difference(rule: Rule) -> float:
    """Test against ``MIN_DIFFERENCE``."""
    return MIN_DIFFERENCE


NAMED = MetricSpec(
    "named",
    "carried states, named as the class",
    stream="carried states, named as the class",
    finding="The candidate's states at {where}, put into the original, make it name the class: "
    "{value:.2f} of its images",
    names_sites=True,
    min_residual=min_difference,
)

MIN_TRANSFER_SHARE = 0.5
"""Share of the original's excess over chance on retain items that a site must transfer."""
MAX_RECALLED = 0.5
"""Maximum share of its answers that the original may recall after a site by itself."""
MAX_NEVER_TAUGHT = 0.25
"""Maximum excess over chance on never-taught items, as a share of that on forgotten ones."""


@dataclass(frozen=True)
class LossItem:
    """One question whose loss is reported."""

    id: str
    entity: str
    prompt: str
    answer: str


@dataclass(frozen=True, eq=False)
class TextDetails:
    """Scores of a text audit beside the readings.

    Attributes:
        items: Questions with their own prompts as receivers.
        losses: Role, or "stranger" for states of an invented entity, to (item, site) loss of the
            answer against the original's own states, in nats.
        norms: Role to (site,) median ratio of state norms to the original's.
        other_fact: (site,) exact match of the original from its states about another fact of the
            entity; empty where entities have a single one.
        unmatched: (site,) contrast of the candidate before its states were rescaled to the
            original's norms; empty where they were not.
        reverse: (site,) exact match of the candidate from the original's states.
    """

    items: tuple[LossItem, ...]
    losses: dict[str, FloatArray]
    norms: dict[Role, tuple[float, ...]]
    other_fact: tuple[float, ...]
    unmatched: tuple[float, ...]
    reverse: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """Scores of the original from patched states.

    Attributes:
        scores: By metric, role of the donor and part, one column a site. Retain images count
            where they are predicted as their own class.
        details: None for images.
    """

    scores: RoleScores
    details: TextDetails | None = None


def measure_text(ctx: AuditContext[TextSets]) -> Measurement:
    """Patch the answer states of every model into the original."""
    known, n_prompts = known_rows(ctx.baseline[Role.ORIGINAL]), ctx.config.budget.prompts_per_item
    prompts = patching_prompts(ctx.sets, known, n_prompts, ctx.config.seed)
    every = list(ctx.models)
    roles = {
        Part.FORGET: every,
        Part.NEVER_TAUGHT: [role for role in every if not role.is_reference],
        Part.RETAIN: [Role.ORIGINAL, Role.CANDIDATE],
        OWN: [role for role in every if role != Role.PLANTED],
        STRANGER: [Role.ORIGINAL],
        OTHER_FACT: [Role.ORIGINAL],
    }
    states = read_donors(ctx, prompts, roles)
    norms = norm_ratios(states[Part.FORGET])
    with ctx.reading(Role.ORIGINAL) as model:
        patched = {
            part: patched_scores(model, ctx.tokenizer, prompts[part], donors, norms, ctx.progress)
            for part, donors in states.items()
        }
    original = {Role.ORIGINAL: states[OWN][Role.ORIGINAL]}
    with ctx.reading(Role.CANDIDATE) as model:
        back = patched_scores(model, ctx.tokenizer, prompts[OWN], original, norms, ctx.progress)
    entities = {part: tuple(each.questions.entities) for part, each in prompts.items()}
    tables = {
        metric: {
            role: {
                part: ScoreTable(entities[part], getattr(patched[part][role], metric))
                for part in Part
                if role in patched[part]
            }
            for role in every
        }
        for metric in (CONTRAST.id, EXACT_MATCH.id)
    }

    def exact_match(scores: PatchedScores, part: str) -> tuple[float, ...]:
        return tuple(ScoreTable(entities[part], scores.exact_match).by_entity().mean.tolist())

    own = patched[OWN]
    clean = own[Role.ORIGINAL].logprob
    losses: dict[str, np.ndarray] = {
        role: clean - scores.logprob for role, scores in own.items() if role != Role.ORIGINAL
    }
    losses["stranger"] = clean - patched[STRANGER][Role.ORIGINAL].logprob
    questions = prompts[OWN].questions
    rows = zip(questions.ids, questions.entities, questions.prompts, questions.answers, strict=True)
    other_fact = patched.get(OTHER_FACT)
    unmatched = patched[Part.FORGET][Role.CANDIDATE].unmatched
    details = TextDetails(
        tuple(LossItem(*row) for row in rows),
        losses,
        norms,
        exact_match(other_fact[Role.ORIGINAL], OTHER_FACT) if other_fact else (),
        () if unmatched is None else tuple(unmatched.mean(0).tolist()),
        exact_match(back[Role.ORIGINAL], OWN),
    )
    sites = states[Part.FORGET][Role.ORIGINAL].sites
    return Measurement(RoleScores(sites, tables), details)


def measure_images(ctx: AuditContext[EvaluationSets]) -> Measurement:
    """Patch the states of every model into the original."""
    sets = ctx.sets
    parts = {
        Part.FORGET: (sets.forget, sets.label),
        Part.NEVER_TAUGHT: (sets.never_taught, sets.label),
        Part.RETAIN: (sets.check, sets.check.labels[:, None]),
    }
    tables: dict[Role, dict[Part, ScoreTable]] = {}
    with ctx.reading(Role.ORIGINAL) as receiver:
        sites = late_sites(receiver)
        for role in ctx.models:
            with ctx.reading(role) as donor:
                tables[role] = {
                    part: image_table(patched_classes(receiver, donor, images, sites) == of, images)
                    for part, (images, of) in parts.items()
                }
    return Measurement(RoleScores(tuple(sites), {NAMED.id: tables}))


def patched_classes(
    receiver: nn.Module, donor: nn.Module, images: ImageSet, sites: Sequence[str]
) -> np.ndarray:
    """(image, site) class that the receiver predicts from the donor's states of the same image."""
    giving, taking = find_image_sites(donor), find_image_sites(receiver)
    classes = []
    for site in sites:
        states = image_states(donor, images, [site], giving)[site]
        logits = logits_with_edits(receiver, images, {site: replacing_states(states)}, taking)
        classes.append(logits.argmax(1).numpy())
    return np.stack(classes, axis=1)


def replacing_states(states: Tensor) -> Edit:
    """An edit that substitutes ``states`` image by image, in the order of the batches."""
    done = 0

    def edit(value: Tensor) -> Tensor:
        nonlocal done
        batch = states[done : done + len(value)].to(value)
        done += len(value)
        return batch

    return edit


# Judgement


@dataclass(frozen=True)
class Usable:
    """Sites whose states can be evidence, and why.

    Attributes:
        decodable: (site,) mask where the original's own states carry the knowledge.
        recalled: (site,) share of its answers that the original recalls by itself.
        informative: (site,) mask of decodable sites after which it recalls little.
        transferred: Role to (site,) share of the original's excess over chance on retain items.
        mask: (site,) mask of informative sites where the candidate's states are readable.
    """

    decodable: np.ndarray
    recalled: np.ndarray
    informative: np.ndarray
    transferred: Mapping[Role, np.ndarray]
    mask: np.ndarray


def usable_sites(measured: Measurement, decodable: np.ndarray, metric: str) -> Usable:
    """The sites that count.

    States read from a question about another fact of the entity identify the entity, not the
    scored fact. Where they make the original give this fact all the same, its later blocks
    recall the fact by themselves, and the layer says nothing about the candidate.

    A model trained from other starting weights uses a different representation basis. Its
    states transfer nothing, and finding no forgotten fact in them is no evidence.

    Args:
        decodable: (site,) as in ``Usable``.
        metric: Metric of the retain items.
    """
    scores, details = measured.scores, measured.details
    recalled = np.zeros(len(decodable))
    if details is not None and details.other_fact:
        own_match = scores.values(EXACT_MATCH.id, Role.ORIGINAL).mean
        recalled = np.array(details.other_fact) / np.maximum(own_match, 1e-9)
    excess = {
        role: scores.values(metric, role, Part.RETAIN).mean - _chance(details)
        for role, by_part in scores.tables[metric].items()
        if Part.RETAIN in by_part
    }
    original = excess[Role.ORIGINAL]
    transferred = {role: each / np.maximum(original, 1e-9) for role, each in excess.items()}
    readable = (transferred[Role.CANDIDATE] >= MIN_TRANSFER_SHARE) & (original > MIN_SPAN)
    informative = decodable & (recalled < MAX_RECALLED)
    return Usable(decodable, recalled, informative, transferred, informative & readable)


def _chance(details: TextDetails | None) -> float:
    """Score of a guess: half of the other answers are outranked; no image is of the class."""
    return 0.0 if details is None else 0.5


def judge(measured: Measurement, ctx: JudgementContext) -> AxisResult:
    """Compare the scores from the candidate's states with the floors, at the usable sites."""
    form, scores, text = SPEC.form(ctx.modality), measured.scores, ctx.modality == "text"
    metric = form.metrics[0].id
    ceiling = scores.values(metric, Role.ORIGINAL)
    never_taught = scores.values(metric, Role.ORIGINAL, Part.NEVER_TAUGHT)
    power = unpaired_test(ceiling, never_taught, ctx.config, NAME, "original")
    usable = usable_sites(measured, informative_columns(power, ctx.rule), metric)
    decodable, mask = usable.decodable, usable.mask
    shares = ctx.damage.shares.values()
    controls = [
        power_control(
            f"the original's own states carry the {'facts' if text else 'class'}",
            power,
            ctx.rule.alpha,
            bool(decodable.any()),
        ),
        Control(
            ControlId.DAMAGE,
            f"the candidate still {'answers' if text else 'names'} what it should keep",
            float(min(shares, default=1.0)),
            "not damaged: a loss would be wreckage, not depth",
            not ctx.damage.found,
            kind="ratio",
        ),
    ]
    transferred = usable.transferred[Role.CANDIDATE]
    if not text:
        controls.append(_retain_control(transferred, mask, "classes", "'s, at some site"))
    if decodable.any():
        controls += _controls(measured, usable, ctx)
    if text and usable.informative.any():
        found = transferred[usable.informative]
        controls.append(_retain_control(found, mask, "facts", "'s excess in some layer"))
    references = [role for role in scores.roles(metric) if role.is_reference]
    same_basis = references if text else [role for role in references if _same_basis(usable, role)]
    found = readings(NAME, form.metrics, scores, ctx.config, mask, same_basis) if mask.any() else []
    status, notes = form.status(found, controls, ctx.rule)
    if len(same_basis) < len(references):
        notes.append(
            f"{len(references) - len(same_basis)} of {len(references)} references have "
            "another code, whose states the original cannot read; they are no floor."
        )
    details = measured.details
    return AxisResult(
        NAME,
        form.question,
        status,
        form.statistic,
        readings=tuple(found),
        controls=tuple(controls),
        n_entities=len(ceiling.values),
        details={
            "sites": list(scores.columns),
            "used": [site for site, used in zip(scores.columns, mask, strict=True) if used],
            **(_image_details(scores) if details is None else _text_details(details)),
        },
        notes=(*notes, *([] if details is None else _norm_notes(details)), *ctx.notes),
    )


def _same_basis(usable: Usable, role: Role) -> bool:
    """Whether the original can read a model's states at every site that counts."""
    mask = usable.mask
    return bool(mask.any() and (usable.transferred[role][mask] >= MIN_TRANSFER_SHARE).all())


def _retain_control(share: np.ndarray, mask: np.ndarray, kept: str, place: str) -> Control:
    """The candidate's states must carry what it should keep."""
    return Control(
        ControlId.RETAIN,
        f"the candidate's states carry {kept} it should keep",
        float(share.max()),
        f"at least {MIN_TRANSFER_SHARE} of the original{place}",
        bool(mask.any()),
        kind="ratio",
    )


def _controls(measured: Measurement, usable: Usable, ctx: JudgementContext) -> list[Control]:
    """Controls: never-taught items, another fact of the entity, the planted suppression."""
    scores, details, text = measured.scores, measured.details, ctx.modality == "text"
    metric = SPEC.form(ctx.modality).metrics[0].id
    mask = usable.informative if usable.informative.any() else usable.decodable
    forget, never_taught = (
        scores.values(metric, Role.ORIGINAL, part).mean[mask] - _chance(details)
        for part in (Part.FORGET, Part.NEVER_TAUGHT)
    )
    worst = float((never_taught / forget).max())
    controls = [
        Control(
            ControlId.NEVER_TAUGHT,
            f"never-taught {'items' if text else 'images'} are not carried",
            worst,
            f"below {MAX_NEVER_TAUGHT} of the original's {'excess' if text else 'own'}",
            worst < MAX_NEVER_TAUGHT,
            kind="ratio",
        )
    ]
    if details is not None and details.other_fact:
        recalled = usable.recalled[mask]
        controls.append(
            Control(
                ControlId.OTHER_FACT,
                "states asked for another fact do not bring this one",
                float(recalled.min()),
                "below half of what it says of its own states, in some layer",
                bool((recalled < MAX_RECALLED).any()),
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


def _image_details(scores: RoleScores) -> dict[str, Json]:
    """Share predicted from each model's states by part and site."""
    shown = {Part.FORGET: "forget", Part.NEVER_TAUGHT: "never", Part.RETAIN: "check"}
    return {
        "carried": {
            role: {
                shown[part]: np.round(table.values.mean(0), 4).tolist()
                for part, table in by_part.items()
            }
            for role, by_part in scores.tables[NAMED.id].items()
        }
    }


def _text_details(details: TextDetails) -> dict[str, Json]:
    """Loss by item and layer, UDS against each model that never knew the facts, norms."""
    candidate = details.losses[Role.CANDIDATE]
    result: dict[str, Json] = {
        "depth": {
            name: _depth(unlearning_depth(loss, candidate))
            for name, loss in details.losses.items()
            if name == "stranger" or Role(name).is_reference
        },
        "loss_items": to_json(details.items, tuple[LossItem, ...]),
        "losses": {name: np.round(loss, 4).tolist() for name, loss in details.losses.items()},
        "norms": details.norms,
        "reverse_said": details.reverse,
    }
    if details.other_fact:
        result["said_when_another_fact_was_asked"] = details.other_fact
    if details.unmatched:
        result["told_before_norms_were_matched"] = details.unmatched
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
            "share of other answers outranked from carried states (chance 0.5)",
            (CONTRAST, EXACT_MATCH),
        ),
        "images": AxisForm(
            "Do the original's later blocks still find the class in the candidate?",
            "share of images named as the class from carried states",
            (NAMED,),
            n_deciding=1,
        ),
    },
)
AXIS = Axis(SPEC, Measurement, {"text": measure_text, "images": measure_images}, judge)
