"""Ways to steer an answer back: the same change for every input, fitted elsewhere.

None of them sees the items it is tried on, and none is told which inputs concern
what was forgotten. A route offers, at a site, what it would add to a state at strength
1, and controls that add as much without what was learned about the state or the set.
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
from capture.data.items import normalize_text
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.network.sites import Sites
from capture.scoring.contrast import entity_contrast, first_tokens
from evidence.errors import InputError
from probes.concepts.answer_map import AnswerMap, fit_answer_map

StateMap = AnswerMap | LatentAmplifier
SteeringEdit = StateMap | Tensor
"""What is added: a map of the state, or one vector (d,)."""

STEERING_METHODS = (
    "its own answer directions, amplified",
    "the original's answer directions, amplified",
    "what the forgotten have in common, removed",
    "what the forgotten lost in common, put back",
    "latents of the answers, amplified",
)
LATENT_METHOD = STEERING_METHODS[4]


@dataclass(frozen=True)
class EncodedQuestions:
    """Questions, their token rows, and what they are about.

    Attributes:
        questions: The questions.
        rows: Their token rows.
    """

    questions: Questions
    rows: Sequences

    @classmethod
    def of(
        cls, questions: Questions, tokenizer: PreTrainedTokenizerBase
    ) -> "EncodedQuestions":
        """Questions with their rows."""
        return cls(questions, questions.encoded(tokenizer))

    @property
    def relations(self) -> np.ndarray:
        """(row,) relation."""
        items = self.questions.items
        return np.array([items[at].relation for at in self.questions.item_index])

    @property
    def classes(self) -> np.ndarray:
        """(row,) relation and answer."""
        pairs = zip(self.relations, self.questions.answers, strict=True)
        return np.array(
            [f"{kind}\x1f{normalize_text(answer)}" for kind, answer in pairs]
        )

    def own_wording(self, max_rows: int | None = None) -> "EncodedQuestions":
        """The rows in an item's own wording, so many of them at most."""
        rows = [row for row, w in enumerate(self.questions.wording) if w == 0][
            :max_rows
        ]
        keep = np.isin(np.arange(len(self.rows)), rows)
        return EncodedQuestions(self.questions.select(keep.tolist()), self.rows[rows])

    def __add__(self, other: "EncodedQuestions") -> "EncodedQuestions":
        """The rows of two selections of the same questions."""
        one, two = self.questions, other.questions
        both = replace(
            one,
            item_index=one.item_index + two.item_index,
            prompts=one.prompts + two.prompts,
            wording=one.wording + two.wording,
        )
        return EncodedQuestions(both, self.rows + other.rows)

    def of_entities(self, entities: Sequence[str]) -> "EncodedQuestions":
        """The rows about some entities."""
        wanted = set(entities)
        keep = [name in wanted for name in self.questions.entities]
        return EncodedQuestions(
            self.questions.select(keep), self.rows[np.flatnonzero(keep).tolist()]
        )


@dataclass(frozen=True)
class Heard:
    """What was heard of some questions.

    Attributes:
        said: (row,) 1.0 where greedy decoding gives the answer.
        contrast: (row,) share of the other answers that the own one outranks.
    """

    said: np.ndarray
    contrast: np.ndarray


def score_steered(
    model: nn.Module,
    questions: EncodedQuestions,
    edits: Mapping[str, RowEdit],
    where: Sites,
) -> Heard:
    """As ``capture.scoring.contrast.hear`` under an edit where the prompts end."""
    own = first_tokens(questions.rows)
    tokens = sorted(set(own))
    scores = score_edited(model, questions.rows, edits, watch=tokens, known_sites=where)
    right = np.searchsorted(tokens, own)
    contrast = entity_contrast(questions.questions, scores.watched, right)
    return Heard(scores.greedy.astype(float), contrast)


def steering_hook(
    steering: SteeringEdit, strength: float, donor_states: np.ndarray | None = None
) -> RowEdit:
    """The edit that adds ``strength`` times a push.

    Args:
        steering: What is added.
        strength: How much of it.
        donor_states: (row, d) states a map reads in place of the row's own: another
            item's, as a control.

    Raises:
        InputError: the strength is not a finite number.
    """
    if not np.isfinite(strength):
        raise InputError(
            "the steering strength is not a finite number", got=str(strength)
        )

    def edit(states: Tensor, rows: np.ndarray) -> Tensor:
        if isinstance(steering, Tensor):
            return states + strength * steering.to(states)
        read = states
        if donor_states is not None:
            read = torch.from_numpy(donor_states[rows]).to(states)
        return states + strength * steering.apply(read)

    return edit


def permuted_donors(
    questions: "EncodedQuestions", rng: np.random.Generator
) -> np.ndarray:
    """(row,) another row in the same words, with another answer where there is one."""
    answers = questions.classes
    words = list(zip(questions.relations, questions.questions.wording, strict=True))
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
class SteeringFit:
    """States of one model that routes are fitted on, and the routes themselves.

    Attributes:
        fit: Retain questions fitted on.
        check: Retain questions of other entities.
        candidate_states: Site to states of ``fit`` and of ``check`` in the candidate.
        original_states: The same in the original.
        forget_states: Site to states of all forget questions in the candidate, and in the
            original.
        latents: Answer latents of an autoencoder, amplified in the candidate; None
            where there is no autoencoder, or it is refused.
        answer_maps: Kept, as they do not depend on who is tested.
    """

    fit: EncodedQuestions
    check: EncodedQuestions
    candidate_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    original_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    forget_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    latents: LatentAmplifier | None = None
    answer_maps: dict[tuple[str, str], SteeringEdit | None] = field(
        default_factory=dict
    )

    def steering_edit(
        self, method: str, site: str, known: np.ndarray
    ) -> SteeringEdit | None:
        """What a route adds at a site, or None where it cannot be fitted.

        Args:
            method: One of ``STEERING_METHODS``.
            site: A site.
            known: (forget row,) True for the entities it may be fitted on.
        """
        if method in STEERING_METHODS[:2]:
            if (method, site) not in self.answer_maps:
                states = (
                    self.candidate_states[site]
                    if method == STEERING_METHODS[0]
                    else self.original_states[site]
                )
                self.answer_maps[method, site] = self._amplifier(*states)
            return self.answer_maps[method, site]
        if method == LATENT_METHOD:
            fits = self.latents is not None and self.latents.sae.site == site
            return self.latents if fits else None
        mine, first = self.forget_states[site]
        retain, retain_first = (
            self.candidate_states[site][0],
            self.original_states[site][0],
        )
        if method == STEERING_METHODS[2]:
            vector = retain.mean(0) - mine[known].mean(0)
        else:
            lost, drift = first - mine, retain_first - retain
            vector = lost[known].mean(0) - drift.mean(0)
        return torch.from_numpy(vector)

    def randomly_rotated(
        self, steering: SteeringEdit, rng: np.random.Generator
    ) -> SteeringEdit:
        """As much added, in directions turned at random."""
        if not isinstance(steering, Tensor):
            return steering.randomly_rotated(rng)
        noise = torch.from_numpy(rng.standard_normal(len(steering)))
        return noise * steering.norm() / noise.norm()

    def retain_direction(
        self, steering: Tensor, site: str, rng: np.random.Generator
    ) -> Tensor:
        """What retain entities drawn at random have in common, as long as ``steering_edit``."""
        retain = self.candidate_states[site][0]
        names = np.array(self.fit.questions.entities)
        unique = list(dict.fromkeys(names.tolist()))
        drawn = np.isin(names, rng.permutation(unique)[: max(1, len(unique) // 8)])
        vector = retain[~drawn].mean(0) - retain[drawn].mean(0)
        length = max(float(np.linalg.norm(vector)), 1e-12)
        return torch.from_numpy(vector / length) * steering.norm()

    def _amplifier(self, states: np.ndarray, check: np.ndarray) -> SteeringEdit | None:
        classes, kinds = self.fit.classes, self.fit.relations
        # An answer of one entity alone would amplify that entity.
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
        return fit_answer_map(
            states[kept], classes[kept], kinds[kept], check, self.check.classes
        )


def prompt_end_states(
    model: nn.Module, questions: EncodedQuestions, sites: Sequence[str]
) -> dict:
    """Site to (row, d) states where the prompts end."""
    found = capture_activations(model, questions.rows, sites)
    return {site: found.site(site).astype(np.float64) for site in sites}
