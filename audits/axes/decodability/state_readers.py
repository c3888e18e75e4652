"""Readers of the original's states: at which depths do they hold the forgotten answers?

States of a question name the entity long before they hold the answer. Two axes depend on the
difference. The front transplant hands the original's states to the candidate's later blocks: where
they hold the answer already, saying it proves nothing about the candidate. Causal depth hands the
candidate's states to the original's later blocks: where they do not hold the answer yet, the
original recalls it by itself.

Readers fitted on the retain entities tell, linear and nonlinear ones, at the last token of the
entity's name and at the last token of the question. They do what the later blocks of a model could
do that was taught everything but the forgotten facts. Two readers without a fit stand beside them:
the original's own last norm and output layer (logit lens), and the answer whose row of the
embedding is nearest.

Answers that several entities share are predicted as classes, codes by their first character. Where
each entity has an answer of its own, the readers predict the answer's row of the output layer, and
the nearest answer counts.

Sources: ``probes.estimators.kernel_smoothers`` for the fitted readers; logit lens, nostalgebraist
2020; what a name's last token holds after the first blocks, Geva et al. 2023 (arXiv 2304.14767).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.axes.decodability.tasks import Form, answers_are_codes, choose_form
from audits.core.context import AuditContext
from audits.core.item_sets import TextSets, measured_entities
from audits.core.roles import Role
from capture.activations.capture import capture_selected
from capture.activations.positions import PositionSelection
from capture.data.invented_entities import mentions_entity
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.sequences import Sequences
from capture.data.tokenization import encode_items, skip_joining_space, subject_ends
from capture.network.sites import find_sites
from capture.network.structure import final_norm, input_embedding, output_head
from evidence.typed_json import FloatArray
from probes.estimators.kernel_smoothers import FAMILIES, smoother_matrices
from probes.splits.folds import Folds

EMBEDDING = "embed"
MAX_READ = 0.5
"""Maximum share of the way from a guess to the original that readers may read at a depth. What they
read raises the floor; beyond this too little is left to tell the question from the answer."""
MIN_READ = 0.5
"""The same share that they must read at some depth to show that they can read at all."""
LENS, NEAREST = "logit lens", "nearest row of the embedding"
"""Readers without a fit."""
LAST, NAME, BOTH, MEAN = "last token", "name", "both", "mean over tokens"
"""Positions that are read."""
MIN_FIT, MAX_FIT = 8, 500
"""Smallest and largest number of retain items of a relation that readers are fitted on."""


@dataclass(frozen=True)
class StateReading:
    """How much of one relation's forgotten answers readers find in the original's states.

    Attributes:
        relation: Name of the relation.
        form: Whether entities share answers.
        n_fit: Number of retain items that the readers were fitted on.
        guess: Share that one and the same answer for all would get right.
        said: (site,) share that the best reader gets right.
        readers: (site,) name and position of that reader.
        at_end: (site,) the same of the best reader at the last token of the question.
        fitted: The largest such share of a fitted reader, over all sites: whether readers can
            find these answers at all. The logit lens is no evidence of that: at the last token of
            the last block it is the model itself.
    """

    relation: str
    form: Form
    n_fit: int
    guess: float
    said: tuple[float, ...]
    readers: tuple[str, ...]
    at_end: tuple[float, ...]
    fitted: float

    @property
    def shares(self) -> FloatArray:
        """(site,) ``said`` as a share of the way from a guess to all."""
        return self._scaled(self.said)

    @property
    def end_shares(self) -> FloatArray:
        """(site,) ``at_end`` as such a share."""
        return self._scaled(self.at_end)

    @property
    def able(self) -> bool:
        """Whether fitted readers have shown that they find these answers where they are."""
        return bool(self._scaled([self.fitted])[0] >= MIN_READ)

    def _scaled(self, values: Sequence[float]) -> FloatArray:
        return (np.array(values) - self.guess) / max(1 - self.guess, 1e-9)


@dataclass(frozen=True)
class StateReadings:
    """What readers find in the original's states, by relation.

    Attributes:
        sites: "embed" and residual sites, in order of depth.
        relations: One reading for every relation with enough retain items.
    """

    sites: tuple[str, ...]
    relations: tuple[StateReading, ...]

    def held(self, site: str) -> float:
        """Mean share of the answers that are read at the end of the questions at a site.

        At least one relation must have been read.
        """
        place = self.sites.index(site)
        return float(np.mean([each.end_shares[place] for each in self.relations]))


def state_readings(ctx: AuditContext[TextSets]) -> StateReadings:
    """The readings of an audit, made once: a stage that two axes share."""

    def compute() -> StateReadings:
        forget, _ = measured_entities(ctx.sets.forget, ctx.sets.never_taught)
        with ctx.reading(Role.ORIGINAL) as model:
            names = find_sites(model).of("resid")
            sites = [EMBEDDING, *evenly_spaced(names, ctx.config.budget.depth_sites)]
            found = read_answers(model, ctx.tokenizer, forget, ctx.sets.retain, sites)
        return StateReadings(tuple(sites), found)

    return ctx.stage("readers-original", StateReadings, compute)


def evenly_spaced(names: Sequence[str], max_sites: int) -> list[str]:
    """At most so many names, evenly spaced, the first and the last included."""
    positions = np.linspace(0, len(names) - 1, min(max_sites, len(names)))
    chosen: list[int] = positions.round().astype(int).tolist()
    return [names[position] for position in chosen]


def read_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    forget: ItemSet,
    retain: ItemSet,
    sites: Sequence[str],
) -> tuple[StateReading, ...]:
    """Readings of every relation that enough retain items have.

    Args:
        model: The original.
        forget: Items that it answers; the readers are scored on these.
        retain: Items that it answers; the readers are fitted on these.
        sites: Residual sites and "embed", in order of depth.
    """
    by_relation: dict[str, tuple[list[Item], list[Item]]] = defaultdict(lambda: ([], []))
    for part, items in enumerate((retain, forget)):
        for item in items:
            by_relation[item.relation][part].append(item)
    found = []
    for relation, (fit, scored) in by_relation.items():
        if len(fit) < MIN_FIT or not scored:
            continue
        fit = fit[:MAX_FIT]
        if answers_are_codes({"fit": fit, "forget": scored}, tokenizer):
            fit, scored = (
                [replace(item, answer=item.answer[0]) for item in items] for items in (fit, scored)
            )
        found.append(_read(model, tokenizer, relation, fit, scored, sites))
    return tuple(found)


def usable_sites(
    readings: Sequence[StateReading], sites: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Relations and sites at which the original's states do not hold the answers.

    A relation counts where the embedding itself does not hold its answers. A deeper site counts
    where no such relation can be read and where the readers have shown, at a later site, that they
    can read each of them: otherwise reading nothing is no evidence, and only the embedding remains,
    in which no token has met another.
    """
    counted = [each for each in readings if each.shares[0] <= MAX_READ]
    if not counted:
        return (), ()
    able = all(each.able for each in counted)
    usable = [
        site
        for place, site in enumerate(sites)
        if site == EMBEDDING or (able and all(each.shares[place] <= MAX_READ for each in counted))
    ]
    return tuple(each.relation for each in counted), tuple(usable)


def _read(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    relation: str,
    fit: Sequence[Item],
    scored: Sequence[Item],
    sites: Sequence[str],
) -> StateReading:
    views = _states(model, tokenizer, [*fit, *scored], sites)
    form = choose_form(scored, fit)
    truth = [normalize_text(item.answer) for item in scored]
    taught = [normalize_text(item.answer) for item in fit]
    if form == "shared":
        answers = sorted(set(taught))
        guess = max(Counter(truth).values()) / len(truth)
    else:
        answers = sorted({*taught, *truth})
        guess = 1 / len(answers)
    vectors = np.eye(len(answers))
    spelled = {normalize_text(item.answer): item for item in (*scored, *fit)}
    said_as = [spelled[answer] for answer in answers]
    if form == "unique":
        vectors = _mean_rows(output_head(model), tokenizer, said_as)
    near = _mean_rows(input_embedding(model), tokenizer, said_as)
    lens = _first_tokens(tokenizer, said_as)
    places = {answer: place for place, answer in enumerate(answers)}
    targets = vectors[[places[answer] for answer in taught]]
    right = np.array([places.get(answer, -1) for answer in truth])
    said, readers, at_end, fitted = [], [], [], 0.0
    for place in range(len(sites)):
        found: dict[tuple[str, str], float] = {}
        for view, states in views.items():
            at = states[:, place]
            guesses = dict(zip(FAMILIES, _predicted(at, targets, vectors), strict=True))
            if view != BOTH:
                last = at[len(fit) :]
                guesses |= {LENS: _lens(model, last, lens), NEAREST: _nearest(last, near)}
            found |= {
                (reader, view): float((each == right).mean()) for reader, each in guesses.items()
            }
        best = max(found, key=lambda pair: found[pair])
        said.append(found[best])
        readers.append(", ".join(best))
        at_end.append(max(share for (_, view), share in found.items() if view == LAST))
        fitted = max(fitted, *(share for (name, _), share in found.items() if name in FAMILIES))
    return StateReading(
        relation, form, len(fit), guess, tuple(said), tuple(readers), tuple(at_end), fitted
    )


def _states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    sites: Sequence[str],
) -> dict[str, np.ndarray]:
    """Position to (item, site, d) states of the original at the end of each question."""
    whole = skip_joining_space(tokenizer, encode_items(tokenizer, items))
    # Up to where the answer begins: a space of its own belongs to the question.
    ids = tuple(row[:start] for row, start in zip(whole.ids, whole.answer_start, strict=True))
    rows = Sequences(ids, tuple(map(len, ids)))
    last = np.array([len(row) - 1 for row in ids])
    named = tokenizer.is_fast and all(mentions_entity(item, item.prompt) for item in items)
    # Without a name in the question, the mean over its tokens stands for the entity's.
    columns = [last, np.array(subject_ends(tokenizer, items))] if named else [last]
    index = np.stack(columns, axis=1)
    mask = np.ones_like(index, dtype=bool)
    at = capture_selected(model, rows, sites, PositionSelection(index, mask, False))
    states = np.stack([at[site] for site in sites], axis=1)  # (item, site, position, d)
    views = {LAST: states[:, :, 0]}
    if named:
        views |= {NAME: states[:, :, 1], BOTH: states.reshape(*states.shape[:2], -1)}
    else:
        mean = capture_selected(model, rows, sites, PositionSelection(None, None, True))
        views[MEAN] = np.stack([mean[site] for site in sites], axis=1)
    return views


def _mean_rows(
    layer: nn.Module | None, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> np.ndarray:
    """(item, d) centered unit vectors: mean row of a layer over the tokens of each answer."""
    if layer is None:
        return np.eye(len(items))
    encoded = encode_items(tokenizer, items)
    matrix = layer.get_parameter("weight").detach()
    rows = [
        matrix[list(ids[start:])].double().mean(0).cpu().numpy()
        for ids, start in zip(encoded.ids, encoded.answer_start, strict=True)
    ]
    return _unit(np.stack(rows))


def _first_tokens(tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]) -> list[int]:
    rows = skip_joining_space(tokenizer, encode_items(tokenizer, items))
    return [ids[start] for ids, start in zip(rows.ids, rows.answer_start, strict=True)]


def _lens(model: nn.Module, states: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """(item,) index of the answer whose first token the last norm and output layer prefer."""
    norm, head = final_norm(model), output_head(model)
    if head is None:
        return np.full(len(states), -1)
    weight = head.get_parameter("weight")
    with torch.no_grad():
        at = torch.from_numpy(np.ascontiguousarray(states)).to(weight)
        logits = (at if norm is None else norm(at)) @ weight[list(tokens)].T
    return logits.argmax(1).cpu().numpy()


def _unit(rows: np.ndarray) -> np.ndarray:
    """The rows around their mean, each of length one."""
    centered = rows - rows.mean(0)
    return centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)


def _nearest(states: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(item,) index of the row with the largest cosine; nothing is fitted."""
    if states.shape[1] != rows.shape[1]:
        return np.full(len(states), -1)
    return (_unit(states.astype(np.float64)) @ rows.T).argmax(1)


def _predicted(states: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(reader, scored item) index of the answer that each reader predicts.

    Args:
        states: (fit and scored item, d).
        targets: (fit item, width) what the readers predict.
        vectors: (answer, width).
    """
    n_fit, n = len(targets), len(states)
    train = np.arange(n)[None] < n_fit
    folds = Folds(train, ~train, "retain entities, then forgotten ones")
    weights = smoother_matrices(torch.from_numpy(states[None]), folds)[:, 0, n_fit:, :n_fit]
    predicted = weights.numpy() @ (targets - targets.mean(0))
    return (predicted @ vectors.T).argmax(2)
