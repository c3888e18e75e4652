"""Measurement of the front-transplant axis: what models say after the original's states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from attribution.patching.cross_model import DonorStates, read_states, score_patched
from audits.axes.base import MetricSpec, Unmeasured, margin
from audits.axes.causal_depth.measurement import patched_classes
from audits.axes.decodability.state_readers import (
    EMBEDDING,
    StateReading,
    evenly_spaced,
    state_readings,
    usable_sites,
)
from audits.axes.front_transplant.alignment import mapped_states
from audits.axes.front_transplant.early_suppression import redirected_names, redirections
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets, measured_entities
from audits.core.roles import Role
from audits.core.scores import Part, RoleScores, ScoreTable
from audits.modalities.image_sets import MIN_DIFFERENCE, EvaluationSets, image_table
from audits.modalities.images import teach_wrong_classes
from capture.data.items import ItemSet
from capture.data.questions import build_questions
from capture.data.sequences import Sequences
from capture.network.sites import find_image_sites
from capture.network.structure import find_blocks
from capture.scoring.answers import score_answers
from erasure.unlearning.training.image_task import first_parameters
from evidence.seeds import numpy_rng, torch_rng

EXACT_MATCH = MetricSpec(
    "exact_match",
    "after the original's front, exact match",
    stream="front said",
    unit="share of answers given",
    is_share=True,
    finding="With the original's states up to {where} in front, the candidate's own later blocks "
    "give them: {value:.2f}",
    names_sites=False,
    min_residual=margin,
)
NAMED = MetricSpec(
    "named",
    "after the original's front, predicted as the class",
    stream="front named",
    unit="share of images predicted as the class",
    is_share=True,
    finding="With the original's states at {where} in front, the candidate's own later blocks "
    "predict the class: {value:.2f} of its images",
    min_residual=lambda _: MIN_DIFFERENCE,
)
MAX_PLANTED = 0.25
"""Maximum share of the forgotten answers that a planted early suppression gives ..."""
MIN_PLANTED_RETAIN = 0.8
"""... and minimum share of the retain answers."""
MIN_READABLE = 0.5
"""Share of retain answers below which a model does not understand the original's states."""


@dataclass(frozen=True)
class EarlySuppression:
    """What the original says where the question, or the picture, is read wrongly.

    Text: the names of forgotten entities are read as invented ones. Images: the patch embedding
    and the first block were trained on wrong classes.
    """

    forget: float
    retain: float

    @property
    def made(self) -> bool:
        """Whether it is a suppression."""
        return self.forget <= MAX_PLANTED and self.retain >= MIN_PLANTED_RETAIN


@dataclass(frozen=True)
class Measurement:
    """Answers given after the original's states, by model.

    Attributes:
        scores: One column a site. The planted suppression is the early one; parts are forgotten,
            never-taught and, of all others, retain items.
        sites: Sites at which readers read the original; none for images.
        readings: What they read, by relation.
        relations: Relations whose answers the front does not hold.
        planted: The early suppression; none is made where no question names its entity.
        shuffled: Share of the forgotten answers that the candidate gives at the deepest site with
            the weights of its later blocks shuffled; None for images.
        aligned: Roles whose states have another basis: the original's were mapped into it.
    """

    scores: RoleScores
    sites: tuple[str, ...]
    readings: tuple[StateReading, ...]
    relations: tuple[str, ...]
    planted: EarlySuppression
    shuffled: float | None
    aligned: tuple[Role, ...] = ()


def measure_text(ctx: AuditContext[TextSets]) -> Measurement | Unmeasured:
    """Read the original's states, then put them in front of every model."""
    budget, tokenizer = ctx.config.budget, ctx.tokenizer
    forget, never_taught = measured_entities(ctx.sets.forget, ctx.sets.never_taught, copies=1)
    found = state_readings(ctx)
    sites, readings = found.sites, found.relations
    relations, usable = usable_sites(readings, sites)
    # The first half of the blocks, and never the last: behind it nothing of the candidate is left.
    front = {EMBEDDING, *sites[1 : min(len(sites) - 1, max(2, len(sites) // 2))]}
    usable = tuple(evenly_spaced([site for site in usable if site in front], budget.transplants))
    if not usable:
        return Unmeasured((_why_unusable(readings),))
    forget, never_taught, retain = (
        _of_relations(items, relations) for items in (forget, never_taught, ctx.sets.retain)
    )
    checked, fit = _split(retain, len(forget.entities), ctx.config.seed)
    asked = {Part.FORGET: forget, Part.NEVER_TAUGHT: never_taught, Part.RETAIN: checked}
    questions = {part: build_questions(items, 1) for part, items in asked.items()}
    rows = {part: each.encoded(tokenizer) for part, each in questions.items()}
    entities = {part: tuple(each.entities) for part, each in questions.items()}
    tables: dict[Role, dict[Part, ScoreTable]] = {}

    def tabled(hits: Mapping[Part, np.ndarray]) -> dict[Part, ScoreTable]:
        return {part: ScoreTable(entities[part], each) for part, each in hits.items()}

    with ctx.reading(Role.ORIGINAL) as model:
        donors = {part: read_states(model, each, usable, "all") for part, each in rows.items()}
        said = {part: score_answers(model, each).greedy for part, each in rows.items()}
        repeated = {
            part: np.repeat(hits[:, None], len(usable), axis=1).astype(float)
            for part, hits in said.items()
        }
        tables[Role.ORIGINAL] = tabled(repeated)
        names = redirections(tokenizer, ctx.sets.forget, never_taught)
        with redirected_names(model, names):
            forgotten, kept = (
                float(score_answers(model, rows[part]).greedy.mean())
                for part in (Part.FORGET, Part.RETAIN)
            )
            planted = EarlySuppression(forgotten, kept)
            if planted.made:
                others = [Part.FORGET, Part.NEVER_TAUGHT]
                tables[Role.PLANTED] = tabled(_after_front(model, rows, donors, others))
    others = [role for role in ctx.models if role not in (Role.ORIGINAL, Role.PLANTED)]
    for role in others:
        with ctx.reading(role) as model:
            tables[role] = tabled(_after_front(model, rows, donors, list(rows)))
    enough = MIN_READABLE * said[Part.RETAIN].mean()
    aligned = [role for role in others if (tables[role][Part.RETAIN].values.mean(0) < enough).all()]
    if aligned:
        fit_rows = build_questions(fit, 1).encoded(tokenizer)
        with ctx.reading(Role.ORIGINAL) as model:
            fitted_from = read_states(model, fit_rows, usable, "all")
        for role in aligned:
            with ctx.reading(role) as model:
                fitted_to = read_states(model, fit_rows, usable, "all")
                mapped = {
                    part: mapped_states(each, fitted_from, fitted_to)
                    for part, each in donors.items()
                }
                tables[role] = tabled(_after_front(model, rows, mapped, list(rows)))
    shuffled = _said_when_shuffled(ctx, rows[Part.FORGET], donors[Part.FORGET])
    scores = RoleScores(usable, {EXACT_MATCH.id: tables})
    return Measurement(scores, sites, readings, relations, planted, shuffled, tuple(aligned))


def measure_images(ctx: AuditContext[EvaluationSets]) -> Measurement:
    """Put the original's states of each picture in front of every model.

    No readers are fitted: states of a picture show what it shows from the first layer on.
    """
    sets = ctx.sets
    parts = {
        Part.FORGET: (sets.forget, sets.label),
        Part.NEVER_TAUGHT: (sets.never_taught, sets.label),
        Part.RETAIN: (sets.check, sets.check.labels[:, None]),
    }
    tables: dict[Role, dict[Part, ScoreTable]] = {}
    with ctx.reading(Role.ORIGINAL) as original:
        sites = early_sites(original)

        def tabled(model: nn.Module) -> dict[Part, ScoreTable]:
            return {
                part: image_table(patched_classes(model, original, images, sites) == of, images)
                for part, (images, of) in parts.items()
            }

        tables[Role.ORIGINAL] = tabled(original)
        for role in ctx.models:
            if role not in (Role.ORIGINAL, Role.PLANTED):
                with ctx.reading(role) as model:
                    tables[role] = tabled(model)
        planted = EarlySuppression(1.0, 1.0)
        # A network of one block has nothing left behind an edited front.
        rates = ctx.config.budget.plant_rates if len(find_blocks(original)) > 1 else ()
        for rate in rates:
            with ctx.models[Role.ORIGINAL].loaded(ctx.device) as model:
                trained = first_parameters(model, 1)
                steps = ctx.config.budget.plant_steps
                planted = EarlySuppression(
                    *teach_wrong_classes(ctx.run, sets, model, trained, rate, steps)
                )
                if planted.made:
                    tables[Role.PLANTED] = tabled(model)
                    break
    scores = RoleScores(tuple(sites), {NAMED.id: tables})
    return Measurement(scores, (), (), (), planted, None)


def early_sites(model: nn.Module) -> list[str]:
    """The input and the output of the first block.

    Deeper states carry the class itself: behind the second block of a transformer they led a
    retrain from the original's starting weights to it, for 0.91 of the images (digits seed 10).
    """
    blocks = find_image_sites(model).of("resid")
    return [EMBEDDING, *blocks[:1]] if len(blocks) > 1 else [EMBEDDING]


def _why_unusable(readings: Sequence[StateReading]) -> str:
    if not readings:
        return "No relation has enough retain items to fit readers on."
    read = max(each.said[0] for each in readings)
    return (
        "The original's embedding itself holds the answers (readers fitted on other entities "
        f"find {read:.2f} of them), so they would come with the original's front."
    )


def _of_relations(items: ItemSet, relations: Sequence[str]) -> ItemSet:
    chosen = tuple(item for item in items if item.relation in relations)
    return replace(items, items=chosen)


def _split(retain: ItemSet, n_checked: int, seed: int) -> tuple[ItemSet, ItemSet]:
    """Retain entities that are asked after the front, and those that a map is fitted on."""
    names = retain.entities
    order = numpy_rng(seed, "front_transplant", "retain").permutation(len(names))
    n_checked = min(n_checked, len(names) // 2)
    checked, fit = order[:n_checked], order[n_checked:]
    return (
        retain.of_entities([names[place] for place in checked]),
        retain.of_entities([names[place] for place in fit]),
    )


def _after_front(
    model: nn.Module,
    rows: Mapping[Part, Sequences],
    donors: Mapping[Part, DonorStates],
    parts: Sequence[Part],
) -> dict[Part, np.ndarray]:
    """Part to (row, site) 1 where the model gives the answer after the original's states."""
    said = {}
    for part in parts:
        by_site = score_patched(model, rows[part], {"original": donors[part]}, "all")["original"]
        said[part] = np.stack([each.greedy.astype(float) for each in by_site.values()], axis=1)
    return said


def _said_when_shuffled(ctx: AuditContext[TextSets], rows: Sequences, states: DonorStates) -> float:
    """Share of the answers given after the deepest site by blocks that know nothing.

    Running the blocks in another order would not do: in a small model they still say most answers.
    """
    deepest = states.sites[-1]
    first = 0 if deepest == EMBEDDING else int(deepest.split(".")[1]) + 1
    alone = replace(states, values={deepest: states.values[deepest]})
    with ctx.fresh(Role.CANDIDATE) as model:
        shuffle_weights_(find_blocks(model)[first:], ctx.config.seed)
        scores = score_patched(model, rows, {"original": alone}, "all")["original"][deepest]
    return float(scores.greedy.mean())


def shuffle_weights_(blocks: Sequence[nn.Module], seed: int) -> None:
    """Permute the entries of every matrix of the blocks, in place; norms and biases stay."""
    generator = torch_rng(seed, "front_transplant", "shuffled")
    with torch.no_grad():
        for block in blocks:
            for parameter in block.parameters():
                if parameter.dim() > 1:
                    order = torch.randperm(parameter.numel(), generator=generator)
                    entries = parameter.flatten()[order.to(parameter.device)]
                    parameter.copy_(entries.view_as(parameter))
