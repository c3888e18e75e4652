"""Questions and images: their scores and states in a model, with and without edits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedTokenizerBase

from attribution.patching.steering import RowEdit, score_edited
from capture.activations.capture import capture_activations
from capture.data.images import ImageSet
from capture.data.items import normalize_text
from capture.data.questions import Questions
from capture.data.sequences import Sequences
from capture.network.hooks import Edit
from capture.network.sites import Sites
from capture.scoring.class_logits import logits_with_edits
from capture.scoring.contrast import QuestionScores, entity_contrast, first_tokens


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
    def relations(self) -> NDArray[np.str_]:
        """(row,) relation."""
        items = self.questions.items
        return np.array([items[index].relation for index in self.questions.item_index])

    @property
    def classes(self) -> NDArray[np.str_]:
        """(row,) relation and answer."""
        pairs = zip(self.relations, self.questions.answers, strict=True)
        return np.array([f"{kind}\x1f{normalize_text(answer)}" for kind, answer in pairs])

    @property
    def shared_classes(self) -> frozenset[str]:
        """Classes of several entities. What stands for any other may stand for its entity."""
        entities_of: dict[str, set[str]] = {}
        for name, entity in zip(self.classes, self.questions.entities, strict=True):
            entities_of.setdefault(str(name), set()).add(entity)
        return frozenset(name for name, entities in entities_of.items() if len(entities) > 1)

    def own_wording(self, max_rows: int | None = None) -> "EncodedQuestions":
        """The rows of items' main prompts, at most ``max_rows`` of them."""
        rows = [row for row, w in enumerate(self.questions.wording) if w == 0][:max_rows]
        keep = np.isin(np.arange(len(self.rows)), rows)
        return EncodedQuestions(self.questions.select(keep.tolist()), self.rows[rows])

    def of_entities(self, entities: Sequence[str]) -> "EncodedQuestions":
        """The rows about the given entities."""
        chosen = set(entities)
        keep = [name in chosen for name in self.questions.entities]
        return EncodedQuestions(
            self.questions.select(keep), self.rows[np.flatnonzero(keep).tolist()]
        )

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


def permuted_donors(questions: EncodedQuestions, rng: np.random.Generator) -> NDArray[np.int64]:
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


def prompt_end_states(
    model: nn.Module, questions: EncodedQuestions, sites: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Site to (row, d) states at the last prompt token."""
    activations = capture_activations(model, questions.rows, sites)
    return {site: activations.site(site).astype(np.float64) for site in sites}


def named_as_class(
    model: nn.Module,
    images: ImageSet,
    edits: Mapping[str, Edit],
    where: Sites,
    label: int | None = None,
) -> NDArray[np.float64]:
    """(image,) 1.0 where the prediction is the image's class, or ``label`` if given."""
    predicted = logits_with_edits(model, images, edits, where).argmax(1).numpy()
    target = images.labels if label is None else label
    return (predicted == target).astype(float)
