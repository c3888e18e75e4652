"""Readers of the original's states: does a depth already hold the forgotten answers?

The front transplant hands the original's states at some depth to the candidate's later blocks. If
those states already hold the answer, saying it proves nothing about the candidate. Readers fitted
on the retain entities tell: linear and nonlinear ones, at the last token of the entity's name and
at the last token of the question. They do what the later blocks of a model could do that was
taught everything but the forgotten facts.

Answers that several entities share are predicted as classes. Where each entity has an answer of its
own, the readers predict the answer's row of the output layer, and the nearest answer counts.

Sources of the readers: ``probes.estimators.kernel_smoothers``. What a token of a name holds after
the first blocks: Geva et al. 2023 (arXiv 2304.14767).
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.axes.decodability.tasks import Form, choose_form
from capture.activations.capture import capture_selected
from capture.activations.positions import PositionSelection
from capture.data.invented_entities import mentions_entity
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.tokenization import encode, encode_items, subject_ends
from capture.network.structure import input_embedding, output_head
from evidence.typed_json import FloatArray
from probes.estimators.kernel_smoothers import FAMILIES, smoother_matrices
from probes.splits.folds import Folds

EMBEDDING = "embed"
MAX_READ = 0.5
"""Maximum share of the way from a guess to the original that readers may read at a depth. What they
read raises the floor; beyond this too little is left to tell the question from the answer."""
MIN_READ = 0.5
"""The same share that they must read at some depth to show that they can read at all."""
NEAREST = "nearest row"
"""Start of the names of readers without a fit: the answer whose row of a layer is nearest."""
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
        fitted: The largest such share of a fitted reader, over all sites: whether readers can
            find these answers at all. The rows of the output layer are no evidence of that: at the
            last token of the last block they are the model itself.
    """

    relation: str
    form: Form
    n_fit: int
    guess: float
    said: tuple[float, ...]
    readers: tuple[str, ...]
    fitted: float

    @property
    def shares(self) -> FloatArray:
        """(site,) ``said`` as a share of the way from a guess to all."""
        return (np.array(self.said) - self.guess) / max(1 - self.guess, 1e-9)

    @property
    def able(self) -> bool:
        """Whether fitted readers have shown that they find these answers where they are."""
        return (self.fitted - self.guess) / max(1 - self.guess, 1e-9) >= MIN_READ


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
    return tuple(
        _read(model, tokenizer, relation, fit[:MAX_FIT], scored, sites)
        for relation, (fit, scored) in by_relation.items()
        if len(fit) >= MIN_FIT and scored
    )


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
    rows = _answer_rows(model, tokenizer, [spelled[answer] for answer in answers])
    if form == "unique":
        vectors = rows["output layer"]
    places = {answer: place for place, answer in enumerate(answers)}
    targets = vectors[[places[answer] for answer in taught]]
    right = np.array([places.get(answer, -1) for answer in truth])
    best, most = [], 0.0
    for place in range(len(sites)):
        found: dict[str, np.ndarray] = {}
        for view, states in views.items():
            at = states[:, place]
            fitted = _predicted(at, targets, vectors)
            found |= {f"{n}, {view}": each for n, each in zip(FAMILIES, fitted, strict=True)}
            if view != "both":
                found |= {
                    f"{NEAREST} of the {layer}, {view}": _nearest(at[len(fit) :], each)
                    for layer, each in rows.items()
                }
        shares = {name: float((each == right).mean()) for name, each in found.items()}
        most = max(most, *(share for name, share in shares.items() if not name.startswith(NEAREST)))
        name = max(shares, key=lambda reader: shares[reader])
        best.append((shares[name], name))
    said, readers = zip(*best, strict=True)
    return StateReading(relation, form, len(fit), guess, said, readers, most)


def _states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    sites: Sequence[str],
) -> dict[str, np.ndarray]:
    """Position to (item, site, d) states of the original at the end of each question."""
    rows = encode(tokenizer, [item.prompt for item in items])
    last = np.array([len(ids) - 1 for ids in rows.ids])
    named = tokenizer.is_fast and all(mentions_entity(item, item.prompt) for item in items)
    # Without a name in the question, the mean over its tokens stands for the entity's.
    columns = [last, np.array(subject_ends(tokenizer, items))] if named else [last]
    index = np.stack(columns, axis=1)
    mask = np.ones_like(index, dtype=bool)
    at = capture_selected(model, rows, sites, PositionSelection(index, mask, False))
    states = np.stack([at[site] for site in sites], axis=1)  # (item, site, position, d)
    views = {"last token": states[:, :, 0]}
    if named:
        views |= {"name": states[:, :, 1], "both": states.reshape(*states.shape[:2], -1)}
    else:
        mean = capture_selected(model, rows, sites, PositionSelection(None, None, True))
        views["mean over tokens"] = np.stack([mean[site] for site in sites], axis=1)
    return views


def _answer_rows(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, items: Sequence[Item]
) -> dict[str, np.ndarray]:
    """Layer to (item, d) centered unit vectors: its mean row over the tokens of each answer."""
    layers = {"output layer": output_head(model), "embedding": input_embedding(model)}
    encoded = encode_items(tokenizer, items)
    answers = [
        list(ids[start:]) for ids, start in zip(encoded.ids, encoded.answer_start, strict=True)
    ]
    found = {}
    for name, layer in layers.items():
        if layer is not None:
            matrix = layer.get_parameter("weight").detach()
            rows = [matrix[ids].double().mean(0).cpu().numpy() for ids in answers]
            found[name] = _unit(np.stack(rows))
    return found


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
