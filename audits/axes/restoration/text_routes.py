"""Steering edits of text states: the same edit for every input, fitted on other items.

No edit sees the items it is tested on, and none is told which inputs concern the forgotten
facts. A method gives, at a site, the edit at strength 1, and control edits of equal size
without information about the state or the set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit, score_edited
from attribution.sae.latents import LatentAmplifier
from capture.activations.capture import capture_activations
from capture.data.items import fold
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.network.sites import Sites
from capture.scoring.contrast import contrast_of, first_tokens
from evidence.errors import InputError
from probes.concepts.answer_map import Amplifier, fit_amplifier

Map = Amplifier | LatentAmplifier
Push = Map | Tensor
"""A linear map of the state, or a constant vector (d,)."""

ROUTES = (
    "its own answer directions, amplified",
    "the original's answer directions, amplified",
    "what the forgotten have in common, removed",
    "what the forgotten lost in common, put back",
    "latents of the answers, amplified",
)
BY_LATENTS = ROUTES[4]


@dataclass(frozen=True)
class Asked:
    """Questions with their token rows."""

    questions: Questions
    rows: Sequences

    @classmethod
    def of(cls, questions: Questions, tokenizer: PreTrainedTokenizerBase) -> "Asked":
        """Encode questions."""
        return cls(questions, questions.encoded(tokenizer))

    @property
    def kinds(self) -> np.ndarray:
        """(row,) relation."""
        items = self.questions.items
        return np.array([items[at].relation for at in self.questions.item_index])

    @property
    def classes(self) -> np.ndarray:
        """(row,) relation and answer."""
        pairs = zip(self.kinds, self.questions.answers, strict=True)
        return np.array([f"{kind}\x1f{fold(answer)}" for kind, answer in pairs])

    def first(self, most: int | None = None) -> "Asked":
        """The rows of items' main prompts, at most ``most`` of them."""
        rows = [row for row, w in enumerate(self.questions.wording) if w == 0][:most]
        keep = np.isin(np.arange(len(self.rows)), rows)
        return Asked(self.questions.keep(keep.tolist()), self.rows[rows])

    def __add__(self, other: "Asked") -> "Asked":
        """The rows of two selections of the same questions."""
        one, two = self.questions, other.questions
        both = replace(
            one,
            item_index=one.item_index + two.item_index,
            prompts=one.prompts + two.prompts,
            wording=one.wording + two.wording,
        )
        return Asked(both, self.rows + other.rows)

    def about(self, entities: Sequence[str]) -> "Asked":
        """The rows about the given entities."""
        wanted = set(entities)
        keep = [name in wanted for name in self.questions.entities]
        return Asked(
            self.questions.keep(keep), self.rows[np.flatnonzero(keep).tolist()]
        )


@dataclass(frozen=True)
class Heard:
    """Scores of steered questions.

    Attributes:
        said: (row,) 1.0 where greedy decoding gives the answer.
        contrast: (row,) share of the other answers that the own one outranks.
    """

    said: np.ndarray
    contrast: np.ndarray


def hear_steered(
    model: nn.Module,
    asked: Asked,
    edits: Mapping[str, RowEdit],
    where: Sites,
) -> Heard:
    """As ``capture.scoring.contrast.hear``, under an edit at the last prompt token."""
    own = first_tokens(asked.rows)
    tokens = sorted(set(own))
    scores = score_edited(model, asked.rows, edits, watch=tokens, where=where)
    right = np.searchsorted(tokens, own)
    contrast = contrast_of(asked.questions, scores.watched, right)
    return Heard(scores.greedy.astype(float), contrast)


def steering(push: Push, strength: float, others: np.ndarray | None = None) -> RowEdit:
    """The edit that adds ``strength`` times a steering edit.

    Args:
        push: Map or vector.
        strength: Multiple of it.
        others: (row, d) states that a map reads in place of the row's own: another item's, as a
            control.

    Raises:
        InputError: the strength is not a finite number.
    """
    if not np.isfinite(strength):
        raise InputError(
            "the steering strength is not a finite number", got=str(strength)
        )

    def edit(states: Tensor, rows: np.ndarray) -> Tensor:
        if isinstance(push, Tensor):
            return states + strength * push.to(states)
        read = states
        if others is not None:
            read = torch.from_numpy(others[rows]).to(states)
        return states + strength * push.written(read)

    return edit


def exchanged(asked: "Asked", rng: np.random.Generator) -> np.ndarray:
    """(row,) a donor row with the same relation and paraphrase, and preferably another answer."""
    answers = asked.classes
    words = list(zip(asked.kinds, asked.questions.wording, strict=True))
    result = np.arange(len(answers))
    for group in dict.fromkeys(words):
        rows = np.array([row for row, each in enumerate(words) if each == group])
        order = rng.permutation(rows)
        shifts = [np.roll(order, k) for k in range(1, len(order))]
        if shifts:
            alike = [(answers[order] == answers[each]).sum() for each in shifts]
            result[order] = shifts[int(np.argmin(alike))]
    return result


@dataclass
class Fitted:
    """States of one model, from which steering edits are fitted.

    Attributes:
        fit: Retain questions to fit on.
        check: Retain questions of other entities.
        own: Site to states of ``fit`` and of ``check`` in the candidate.
        first: The same in the original.
        forget: Site to states of all forget questions in the candidate, and in the original.
        latents: Amplifier of the autoencoder's answer latents; None without an accepted one.
        amplifiers: Cache of answer maps, which do not depend on the tested half.
    """

    fit: Asked
    check: Asked
    own: Mapping[str, tuple[np.ndarray, np.ndarray]]
    first: Mapping[str, tuple[np.ndarray, np.ndarray]]
    forget: Mapping[str, tuple[np.ndarray, np.ndarray]]
    latents: LatentAmplifier | None = None
    amplifiers: dict[tuple[str, str], Push | None] = field(default_factory=dict)

    def push(self, route: str, site: str, known: np.ndarray) -> Push | None:
        """The edit of a method at a site, or None where it cannot be fitted.

        Args:
            route: One of ``ROUTES``.
            site: Where it is applied.
            known: (forget row,) mask of the rows it may be fitted on.
        """
        if route in ROUTES[:2]:
            if (route, site) not in self.amplifiers:
                states = self.own[site] if route == ROUTES[0] else self.first[site]
                self.amplifiers[route, site] = self._amplifier(*states)
            return self.amplifiers[route, site]
        if route == BY_LATENTS:
            fits = self.latents is not None and self.latents.sae.site == site
            return self.latents if fits else None
        mine, first = self.forget[site]
        retain, retain_first = self.own[site][0], self.first[site][0]
        if route == ROUTES[2]:
            vector = retain.mean(0) - mine[known].mean(0)
        else:
            lost, drift = first - mine, retain_first - retain
            vector = lost[known].mean(0) - drift.mean(0)
        return torch.from_numpy(vector)

    def turned(self, push: Push, rng: np.random.Generator) -> Push:
        """An edit of equal size in random directions."""
        if not isinstance(push, Tensor):
            return push.turned(rng)
        noise = torch.from_numpy(rng.standard_normal(len(push)))
        return noise * push.norm() / noise.norm()

    def of_retain(self, push: Tensor, site: str, rng: np.random.Generator) -> Tensor:
        """Mean difference of random retain entities, scaled to the norm of ``push``."""
        retain = self.own[site][0]
        names = np.array(self.fit.questions.entities)
        unique = list(dict.fromkeys(names.tolist()))
        drawn = np.isin(names, rng.permutation(unique)[: max(1, len(unique) // 8)])
        vector = retain[~drawn].mean(0) - retain[drawn].mean(0)
        length = max(float(np.linalg.norm(vector)), 1e-12)
        return torch.from_numpy(vector / length) * push.norm()

    def _amplifier(self, states: np.ndarray, check: np.ndarray) -> Push | None:
        classes, kinds = self.fit.classes, self.fit.kinds
        # An answer of a single entity would amplify that entity instead.
        holders: dict[str, set[str]] = {}
        for name, entity in zip(classes, self.fit.questions.entities, strict=True):
            holders.setdefault(name, set()).add(entity)
        kept = np.array([len(holders[name]) > 1 for name in classes])
        of_kind = {
            kind: len(set(classes[kept & (kinds == kind)])) for kind in set(kinds)
        }
        kept &= np.array([of_kind[kind] > 1 for kind in kinds])
        if not kept.any():
            return None
        return fit_amplifier(
            states[kept], classes[kept], kinds[kept], check, self.check.classes
        )


def states_at(model: nn.Module, asked: Asked, sites: Sequence[str]) -> dict:
    """Site to (row, d) states at the last prompt token."""
    found = capture_activations(model, asked.rows, sites)
    return {site: found.site(site).astype(np.float64) for site in sites}
