"""Measurement of the causal-depth axis: scores of the original from every model's states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from audits.axes.base import MetricSpec, margin
from audits.axes.behaviour import known_rows
from audits.axes.causal_depth.state_transfer import (
    OTHER_FACT,
    OWN,
    UNRELATED,
    PatchedScores,
    PatchingPrompts,
    norm_ratios,
    patched_scores,
    patching_prompts,
    read_donors,
)
from audits.axes.decodability.state_readers import state_readings
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import MIN_DIFFERENCE, EvaluationSets, image_table, late_sites
from capture.data.images import ImageSet
from capture.network.hooks import Edit
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import image_states, logits_with_edits
from evidence.typed_json import FloatArray

# States that encode only the entity, without the fact, still give the original a small
# advantage. So the test is against the margin, not the floor.
CONTRAST = MetricSpec(
    "contrast",
    "transferred states, contrast",
    stream="told",
    unit="other answers outranked (chance 0.5)",
    finding="The candidate's states at {where}, put into the original, rank them above other "
    "entities' answers: {value:.2f}",
    names_sites=True,
    min_residual=margin,
)
EXACT_MATCH = MetricSpec(
    "exact_match",
    "transferred states, exact match",
    stream="said",
    unit="share of answers given",
    is_share=True,
    finding="The candidate's states at {where}, put into the original, make it give them: "
    "{value:.2f}",
    names_sites=True,
    min_residual=margin,
)
NAMED = MetricSpec(
    "named",
    "transferred states, predicted as the class",
    stream="carried states, named as the class",
    unit="share of images predicted as the class",
    is_share=True,
    finding="The candidate's states at {where}, put into the original, make it predict the class: "
    "{value:.2f} of its images",
    names_sites=True,
    min_residual=lambda _: MIN_DIFFERENCE,
)


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
        losses: Role, or "unrelated" for states of an invented entity, to (item, site) loss of the
            answer against the original's own states, in nats.
        norms: Role to (site,) median ratio of state norms to the original's.
        other_fact: (site,) exact match of the original from its states about another fact of the
            entity; empty where entities have a single one.
        unmatched: (site,) contrast of the candidate before its states were rescaled to the
            original's norms; empty where they were not.
    """

    items: tuple[LossItem, ...]
    losses: dict[str, FloatArray]
    norms: dict[str, tuple[float, ...]]
    other_fact: tuple[float, ...]
    unmatched: tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """Scores of the original from patched states.

    Attributes:
        scores: By metric, role of the donor and part, one column a site. Retain images count
            where they are predicted as their own class.
        details: None for images.
        held: (site,) share of the answers that readers find in the original's states there; empty
            for images, and where no relation has enough retain items for readers.
    """

    scores: RoleScores
    details: TextDetails | None = None
    held: tuple[float, ...] = ()


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
        UNRELATED: [Role.ORIGINAL],
        OTHER_FACT: [Role.ORIGINAL],
    }
    states = read_donors(ctx, prompts, roles)
    norms = norm_ratios(states[Part.FORGET])
    with ctx.reading(Role.ORIGINAL) as model:
        patched = {
            part: patched_scores(model, ctx.tokenizer, prompts[part], donors, norms, ctx.progress)
            for part, donors in states.items()
        }
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

    sites = states[Part.FORGET][Role.ORIGINAL].sites
    details = _details(prompts, patched, norms)
    readings = state_readings(ctx)
    held = tuple(readings.held(site) for site in sites) if readings.relations else ()
    return Measurement(RoleScores(sites, tables), details, held)


def _details(
    prompts: Mapping[str, PatchingPrompts],
    patched: Mapping[str, Mapping[Role, PatchedScores]],
    norms: dict[str, tuple[float, ...]],
) -> TextDetails:
    """What is reported beside the readings.

    Args:
        patched: Scores of the original, by part and donor.
    """

    def exact_match(scores: PatchedScores, part: str) -> tuple[float, ...]:
        names = tuple(prompts[part].questions.entities)
        return tuple(ScoreTable(names, scores.exact_match).by_entity().mean.tolist())

    own, questions = patched[OWN], prompts[OWN].questions
    clean = own[Role.ORIGINAL].logprob
    losses: dict[str, np.ndarray] = {
        role: clean - scores.logprob for role, scores in own.items() if role != Role.ORIGINAL
    }
    losses["unrelated"] = clean - patched[UNRELATED][Role.ORIGINAL].logprob
    rows = zip(questions.ids, questions.entities, questions.prompts, questions.answers, strict=True)
    other_fact = patched.get(OTHER_FACT)
    unmatched = patched[Part.FORGET][Role.CANDIDATE].unmatched
    return TextDetails(
        tuple(LossItem(*row) for row in rows),
        losses,
        norms,
        exact_match(other_fact[Role.ORIGINAL], OTHER_FACT) if other_fact else (),
        () if unmatched is None else tuple(unmatched.mean(0).tolist()),
    )


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
