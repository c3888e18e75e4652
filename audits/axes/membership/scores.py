"""Membership scores: the entities compared, and a classifier's scores of a model's states.

The classifier is fitted on retain entities against invented entities that mirror them item by
item, and evaluated on all others. ``audits.axes.membership.axis`` builds the axis on it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.core.config import AuditConfig
from audits.core.context import AuditedModel
from audits.core.item_sets import measured_entities
from capture.activations.positions import Positions
from capture.activations.store import ActivationStore
from capture.data.invented_entities import invent_items
from capture.data.items import Item, ItemSet
from capture.data.questions import Questions, build_questions
from capture.data.tokenization import encode
from capture.network.sites import find_sites
from evidence.errors import InputError
from evidence.hypothesis_tests import MaxTest, unpaired_max_test
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from evidence.typed_json import FloatArray
from probes.estimators.kernel_smoothers import smoother_matrices
from probes.splits.folds import Folds

NAME = "membership"
MIN_ENTITIES = 6
# More entities help little, and the kernel matrix grows quadratically.
MAX_FIT_ENTITIES = 200
FIT_FRACTION = 0.8
# Of the forgotten, and of the never-taught items: the kernel matrix holds these as well.
MAX_EVALUATED_ROWS = 2000
EVALUATED = ("check", "check_invented", "forget", "never_taught")
PARTS = ("fit", "fit_invented", *EVALUATED)


@dataclass(frozen=True)
class MembershipSets:
    """The questions compared.

    Attributes:
        questions: By part of ``PARTS``; fitting parts with one prompt per item.
    """

    questions: Mapping[str, Questions]

    @property
    def prompts(self) -> list[str]:
        """All prompts, part by part."""
        return [text for part in PARTS for text in self.questions[part].prompts]

    @property
    def part(self) -> NDArray[np.str_]:
        """(row,) part of each prompt."""
        return np.repeat(PARTS, [len(self.questions[part]) for part in PARTS])


def select_sets(
    forget: ItemSet, retain: ItemSet, never_taught: ItemSet, wordings: int, seed: int
) -> MembershipSets:
    """Choose the fitting entities and invent their counterparts.

    Args:
        forget: Forgotten items that the original knows.
        never_taught: Never-taught items.
        wordings: Prompts per item of the evaluated parts.

    Raises:
        InputError: too few entities, or no names can be invented for the retain ones.
    """
    relations = {item.relation for item in forget}
    same_relations = ItemSet(tuple(x for x in retain if x.relation in relations), retain.name)
    fewest = min(len(item_set.entities) for item_set in (forget, never_taught, same_relations))
    if fewest < MIN_ENTITIES:
        raise InputError(
            "too few entities to read a signature of membership",
            expected=f"{MIN_ENTITIES} or more forgotten, never-taught and retain "
            "ones, of the same relations",
            got=str(fewest),
        )
    names = same_relations.entities
    order = numpy_rng(seed, NAME, "fit").permutation(len(names))[:MAX_FIT_ENTITIES]
    existing = ItemSet(tuple(replace(item, id=f"k-{item.id}") for item in (*forget, *never_taught)))
    chosen = same_relations.of_entities([names[position] for position in sorted(order)])
    mirror = invent_items(chosen, existing, numpy_rng(seed, NAME, "invented"))
    # The mirror follows its original item by item, so the same cut keeps pairs together.
    cut = set(list(chosen.entities)[: int(FIT_FRACTION * len(chosen.entities))])

    def of(items: ItemSet, in_cut: bool) -> list[Item]:
        return [
            item
            for item, original in zip(items, chosen, strict=True)
            if (original.entity in cut) == in_cut
        ]

    per_entity = -(-len(build_questions(forget, wordings)) // len(forget.entities))
    most = max(MIN_ENTITIES, MAX_EVALUATED_ROWS // per_entity)
    forget, never_taught = measured_entities(forget, never_taught, most)
    asked = {
        "fit": build_questions(of(chosen, True), 1),
        "fit_invented": build_questions(of(mirror, True), 1),
        "check": build_questions(of(chosen, False), wordings),
        "check_invented": build_questions(of(mirror, False), wordings),
        "forget": build_questions(forget, wordings),
        "never_taught": build_questions(
            [item for item in never_taught if item.relation in relations], wordings
        ),
    }
    return MembershipSets(asked)


@dataclass(frozen=True, eq=False)
class States:
    """One model's states of every prompt.

    Attributes:
        sites: Residual sites, the embedding first where there is one.
        last: (site, row, d) states at the last token.
        names: (1, row, d) mean over tokens at the embedding; None where there is no embedding.
    """

    sites: tuple[str, ...]
    last: NDArray[np.float32]
    names: NDArray[np.float32] | None = None


def capture_states(
    model: nn.Module,
    audited: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: MembershipSets,
    store: ActivationStore,
    progress: Progress,
) -> States:
    """Capture every prompt at every residual site, and the names at the embedding.

    Args:
        model: The model of ``audited``, loaded.
    """
    rows, found = encode(tokenizer, sets.prompts), find_sites(model)

    def states(names: Sequence[str], positions: Positions) -> NDArray[np.float32]:
        return np.asarray(
            store.activations(
                audited, rows, names, positions, model=model, progress=progress
            ).values
        )

    embedding = found.of("embed")
    sites = (*embedding, *found.of("resid"))
    return States(sites, states(sites, "last"), states(embedding, "mean") if embedding else None)


@dataclass(frozen=True, eq=False)
class MembershipScores:
    """A classifier's scores of one model's states.

    Attributes:
        means: Evaluated part to (entity, site) mean score over an entity's prompts.
    """

    means: dict[str, FloatArray]

    def wins(self, part: str, other: str) -> NDArray[np.float64]:
        """(entity, site) share of the other part's entities that score lower, ties one half."""
        tie = self._tie(part, other)
        return outranked(self.means[part], self.means[other], tie) / len(self.means[other])

    def losses(self, part: str, other: str) -> NDArray[np.float64]:
        """(other entity, site) share of the part's entities that score higher, ties one half."""
        tie = self._tie(part, other)
        return outranked(-self.means[other], -self.means[part], tie) / len(self.means[part])

    def auc(self, part: str, other: str) -> NDArray[np.float64]:
        """(site,) AUC of one part's entities over another's."""
        high, low = self.means[part], self.means[other]
        won = outranked(high, low, self._tie(part, other)).sum(0)
        return won / (len(high) * len(low))

    def _tie(self, part: str, other: str) -> float:
        """Difference up to which two scores are equal."""
        scale = max(np.abs(self.means[part]).max(), np.abs(self.means[other]).max(), 1e-300)
        return 1e-9 * scale

    def test(self, part: str, other: str, mask: NDArray[np.bool_], config: AuditConfig) -> MaxTest:
        """Exact permutation test of that AUC over the masked sites."""
        high, low = self.means[part][:, mask], self.means[other][:, mask]
        pooled = np.concatenate([high, low])
        scale = np.maximum(np.abs(pooled).max(0), 1e-300)
        pooled = np.round(pooled / scale, 9)  # ties up to rounding are ties
        # The difference of mean ranks is AUC - 0.5 for every labeling.
        ranks = (rankdata(pooled, axis=0) - 0.5) / len(pooled)
        rng = numpy_rng(config.seed, NAME, part, other)
        return unpaired_max_test(
            ranks[: len(high)], ranks[len(high) :], rng, config.budget.permutations
        )


def outranked(
    scores: NDArray[np.float64], others: NDArray[np.float64], tie: float
) -> NDArray[np.float64]:
    """(entity, site) number of others that score lower, ties one half.

    Scores are sorted, so that neither time nor memory grows with the number of couples.

    Args:
        scores: (entity, site).
        others: (other entity, site).
        tie: Difference up to which two scores are equal.
    """
    ordered = np.sort(others, axis=0)
    last = len(ordered) - 1

    def count(is_lower: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> NDArray[np.int64]:
        """Number of others for which the difference of scores is large enough (bisection)."""
        low, high = np.zeros(scores.shape, dtype=int), np.full(scores.shape, len(ordered))
        while (open_ := low < high).any():
            middle = (low + high) // 2
            beyond = is_lower(
                scores - np.take_along_axis(ordered, np.minimum(middle, last), axis=0)
            )
            low = np.where(open_ & beyond, middle + 1, low)
            high = np.where(open_ & ~beyond, middle, high)
        return low

    lower = count(lambda difference: difference > tie)
    lower_or_tied = count(lambda difference: difference >= -tie)
    return lower + 0.5 * (lower_or_tied - lower)


def score_membership(
    states: NDArray[np.float32], sets: MembershipSets, family: str, seed: int, shuffles: int = 0
) -> list[MembershipScores]:
    """Fit a classifier family on retain against invented entities, site by site.

    Args:
        states: (site, row, d) of the prompts of ``sets``.
        family: One of ``probes.estimators.kernel_smoothers.FAMILIES``.
        seed: Of shuffles and random features.
        shuffles: Number of label vectors with the labels of each pair exchanged at random.

    Returns:
        Scores of the classifiers fitted on true labels, then those for each shuffle.
    """
    part = sets.part
    member = np.isin(part, ("fit", "check", "forget"))
    fitted = np.char.startswith(part, "fit")
    folds = Folds(fitted[None], ~fitted[None], "retain and invented entities")
    owners = sets.questions["fit"].entities
    pairs = {name: number for number, name in enumerate(dict.fromkeys(owners))}
    pair = np.array([pairs[name] for name in owners])
    labels = np.repeat(np.where(member, 1.0, -1.0)[None], 1 + shuffles, 0)
    flips = numpy_rng(seed, NAME, "shuffle").choice((-1.0, 1.0), (shuffles, len(pairs)))
    # The mirror's items are in the order of the originals.
    labels[1:, fitted] *= np.tile(flips[:, pair], 2)
    signs = torch.from_numpy(labels.T)
    scores = []
    for rows in states:
        x = torch.from_numpy(rows.astype(np.float64))[None]
        weights = smoother_matrices(x, folds, (family,), seed=seed)[0, 0]
        scores.append((weights @ signs).T.numpy())
    return [
        MembershipScores({name: _entity_means(values, sets, name) for name in EVALUATED})
        for values in np.stack(scores, 1)
    ]


def _entity_means(scores: NDArray[np.float64], sets: MembershipSets, part: str) -> FloatArray:
    """(entity, site) mean score of a part's entities.

    Args:
        scores: (site, row).
    """
    values, names = scores[:, sets.part == part], sets.questions[part].entities
    index_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    owner = np.array([index_of[name] for name in names])
    total = np.zeros((len(index_of), len(values)))
    np.add.at(total, owner, values.T)
    return total / np.bincount(owner)[:, None]
