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
from capture.data.items import normalize_text
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.network.sites import Sites
from capture.scoring.contrast import QuestionScores, entity_contrast, first_tokens
from evidence.errors import InputError
from probes.concepts.answer_map import AnswerMap, fit_answer_map

StateMap = AnswerMap | LatentAmplifier
SteeringEdit = StateMap | Tensor
"""A linear map of the state, or a constant vector (d,)."""

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
    """Questions with their token rows."""

    questions: Questions
    rows: Sequences

    @classmethod
    def of(cls, questions: Questions, tokenizer: PreTrainedTokenizerBase) -> "EncodedQuestions":
        """Encode questions."""
        return cls(questions, questions.encoded(tokenizer))

    @property
    def relations(self) -> np.ndarray:
        """(row,) relation."""
        items = self.questions.items
        return np.array([items[index].relation for index in self.questions.item_index])

    @property
    def classes(self) -> np.ndarray:
        """(row,) relation and answer."""
        pairs = zip(self.relations, self.questions.answers, strict=True)
        return np.array([f"{kind}\x1f{normalize_text(answer)}" for kind, answer in pairs])

    def own_wording(self, max_rows: int | None = None) -> "EncodedQuestions":
        """The rows of items' main prompts, at most ``most`` of them."""
        rows = [row for row, w in enumerate(self.questions.wording) if w == 0][:max_rows]
        keep = np.isin(np.arange(len(self.rows)), rows)
        return EncodedQuestions(self.questions.select(keep.tolist()), self.rows[rows])

    def __add__(self, other: "EncodedQuestions") -> "EncodedQuestions":
        """The rows of two selections of the same questions."""
        first, second = self.questions, other.questions
        both = replace(
            first,
            item_index=first.item_index + second.item_index,
            prompts=first.prompts + second.prompts,
            wording=first.wording + second.wording,
        )
        return EncodedQuestions(both, self.rows + other.rows)

    def of_entities(self, entities: Sequence[str]) -> "EncodedQuestions":
        """The rows about the given entities."""
        chosen = set(entities)
        keep = [name in chosen for name in self.questions.entities]
        return EncodedQuestions(
            self.questions.select(keep), self.rows[np.flatnonzero(keep).tolist()]
        )


def score_steered(
    model: nn.Module, questions: EncodedQuestions, edits: Mapping[str, RowEdit], where: Sites
) -> QuestionScores:
    """As ``capture.scoring.contrast.score_questions``, under an edit at the last prompt token."""
    answer_tokens = first_tokens(questions.rows)
    tokens = sorted(set(answer_tokens))
    scores = score_edited(model, questions.rows, edits, watch=tokens, known_sites=where)
    right = np.searchsorted(tokens, answer_tokens)
    contrast = entity_contrast(questions.questions, scores.watched, right)
    return QuestionScores(scores.greedy.astype(float), contrast, scores.mean_logprob)


def steering_hook(
    steering: SteeringEdit, strength: float, donor_states: np.ndarray | None = None
) -> RowEdit:
    """The edit that adds ``strength`` times a steering edit.

    Args:
        steering: Map or vector.
        strength: Multiple of it.
        donor_states: (row, d) states that a map reads in place of the row's own, as a
            control.

    Raises:
        InputError: the strength is not a finite number.
    """
    if not np.isfinite(strength):
        raise InputError("the steering strength is not a finite number", got=str(strength))

    def edit(states: Tensor, rows: np.ndarray) -> Tensor:
        if isinstance(steering, Tensor):
            return states + strength * steering.to(states)
        read = states
        if donor_states is not None:
            read = torch.from_numpy(donor_states[rows]).to(states)
        return states + strength * steering.apply(read)

    return edit


def permuted_donors(questions: "EncodedQuestions", rng: np.random.Generator) -> np.ndarray:
    """(row,) a donor row with the same relation and paraphrase, and preferably another answer."""
    answers = questions.classes
    forms = list(zip(questions.relations, questions.questions.wording, strict=True))
    result = np.arange(len(answers))
    for group in dict.fromkeys(forms):
        rows = np.array([row for row, form in enumerate(forms) if form == group])
        order = rng.permutation(rows)
        shifts = [np.roll(order, k) for k in range(1, len(order))]
        if shifts:
            n_equal = [(answers[order] == answers[shift]).sum() for shift in shifts]
            result[order] = shifts[int(np.argmin(n_equal))]
    return result


@dataclass
class SteeringFit:
    """States of one model, from which steering edits are fitted.

    Attributes:
        fit: Retain questions to fit on.
        check: Retain questions of other entities.
        candidate_states: Site to states of ``fit`` and of ``check`` in the candidate.
        original_states: The same in the original.
        forget_states: Site to states of all forget questions in the candidate, and in the original.
        latents: Amplifier of the autoencoder's answer latents; None without an accepted one.
        answer_maps: Cache of answer maps, which do not depend on the tested half.
    """

    fit: EncodedQuestions
    check: EncodedQuestions
    candidate_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    original_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    forget_states: Mapping[str, tuple[np.ndarray, np.ndarray]]
    latents: LatentAmplifier | None = None
    answer_maps: dict[tuple[str, str], SteeringEdit | None] = field(default_factory=dict)

    def steering_edit(self, method: str, site: str, mask: np.ndarray) -> SteeringEdit | None:
        """The edit of a method at a site, or None where it cannot be fitted.

        Args:
            method: One of ``STEERING_METHODS``.
            site: Where it is applied.
            mask: (forget row,) mask of the rows it may be fitted on.
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
        candidate, original = self.forget_states[site]
        retain, retain_first = (self.candidate_states[site][0], self.original_states[site][0])
        if method == STEERING_METHODS[2]:
            vector = retain.mean(0) - candidate[mask].mean(0)
        else:
            difference, drift = original - candidate, retain_first - retain
            vector = difference[mask].mean(0) - drift.mean(0)
        return torch.from_numpy(vector)

    def randomly_rotated(self, steering: SteeringEdit, rng: np.random.Generator) -> SteeringEdit:
        """An edit of equal size in random directions."""
        if not isinstance(steering, Tensor):
            return steering.randomly_rotated(rng)
        noise = torch.from_numpy(rng.standard_normal(len(steering)))
        return noise * steering.norm() / noise.norm()

    def retain_direction(self, steering: Tensor, site: str, rng: np.random.Generator) -> Tensor:
        """Mean difference of random retain entities, scaled to the norm of ``steering``."""
        retain = self.candidate_states[site][0]
        names = np.array(self.fit.questions.entities)
        unique = list(dict.fromkeys(names.tolist()))
        sampled = np.isin(names, rng.permutation(unique)[: max(1, len(unique) // 8)])
        vector = retain[~sampled].mean(0) - retain[sampled].mean(0)
        length = max(float(np.linalg.norm(vector)), 1e-12)
        return torch.from_numpy(vector / length) * steering.norm()

    def _amplifier(self, states: np.ndarray, check: np.ndarray) -> SteeringEdit | None:
        classes, relations = self.fit.classes, self.fit.relations
        # An answer of a single entity would amplify that entity instead.
        entities_of: dict[str, set[str]] = {}
        for name, entity in zip(classes, self.fit.questions.entities, strict=True):
            entities_of.setdefault(name, set()).add(entity)
        mask = np.array([len(entities_of[name]) > 1 for name in classes])
        n_classes = {kind: len(set(classes[mask & (relations == kind)])) for kind in set(relations)}
        mask &= np.array([n_classes[kind] > 1 for kind in relations])
        if not mask.any():
            return None
        return fit_answer_map(
            states[mask], classes[mask], relations[mask], check, self.check.classes
        )


def prompt_end_states(model: nn.Module, questions: EncodedQuestions, sites: Sequence[str]) -> dict:
    """Site to (row, d) states at the last prompt token."""
    activations = capture_activations(model, questions.rows, sites)
    return {site: activations.site(site).astype(np.float64) for site in sites}
