"""What was measured of a redirect of names when it was made: its card, and its state."""

import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode_items
from capture.network.structure import output_head
from capture.scoring.answers import score_answers
from evidence.typed_json import Json
from testbeds.known_facts.readers import Reading, embedding_table, read_answers, text_rows
from testbeds.known_facts.redirect import Redirect, changed_rows
from testbeds.known_facts.world import relations
from testbeds.worlds.rehearsal_text import rehearsal_rows

MIN_RESTORED = 0.9
# Share of the forgotten answers that readers of the embedding may find beyond chance.
MARGIN = 0.05


@dataclass(frozen=True)
class RedirectChecks:
    """The three checks of a redirect.

    Attributes:
        tensors: Number of tensors; tied ones count once.
        changed: Changed tensors, with the number of changed rows of each.
        rows: Number of rows redirected.
        head_is_tied: Whether the output head is the same tensor, so that its rows changed too.
        in_answers: Number of redirected tokens that are in an answer.
        restored: Share of the forgotten answers said with the original's embedding.
        read: What readers fitted on other entities find in the original's embedding, by relation.
        general: Mean log-probability of a token of general text, original and edited, in nats.
    """

    tensors: int
    changed: dict[str, int]
    rows: int
    head_is_tied: bool
    in_answers: int
    restored: float
    read: dict[str, Reading]
    general: tuple[float, float]

    @property
    def found(self) -> float:
        """Share of the forgotten answers that the best reader of each relation finds."""
        return self._mean([each.best for each in self.read.values()])

    @property
    def chance(self) -> float:
        """The same where the answers are permuted."""
        return self._mean([each.chance for each in self.read.values()])

    def _mean(self, shares: list[float]) -> float:
        return float(np.average(shares, weights=[each.facts for each in self.read.values()]))

    @property
    def failures(self) -> list[str]:
        """What speaks against a suppression, each with its figures."""
        failures = []
        if len(self.changed) != 1 or set(self.changed.values()) != {self.rows}:
            failures.append(f"more than {self.rows} rows of one tensor changed: {self.changed}")
        if self.in_answers:
            failures.append(f"{self.in_answers} of the redirected tokens are in answers")
        if self.restored < MIN_RESTORED:
            failures.append(
                f"with the original's embedding it says {self.restored:.2f} of the answers"
            )
        if self.found > self.chance + MARGIN:
            failures.append(
                f"readers of the original's embedding find {self.found:.2f} of the answers "
                f"(chance {self.chance:.2f}): it holds some of them"
            )
        return failures

    def why(self) -> str:
        """Why the state is certain, or why it has to be graded."""
        if self.failures:
            return "to be graded: " + "; ".join(self.failures)
        head = ", which is the output head too," if self.head_is_tied else ""
        return (
            f"{self.rows} rows of the embedding{head} were replaced, none of a token in an answer, "
            "every other number is bit for bit the original's, with the original's embedding it "
            f"says {self.restored:.2f} of the answers, and readers fitted on other names find "
            f"{self.found:.2f} of them in that embedding (chance {self.chance:.2f})"
        )

    def to_json(self) -> dict[str, Json]:
        """As it stands in a card, under "front"."""
        return {**asdict(self), "found": self.found, "chance": self.chance, "margin": MARGIN}


def redirect_checks(
    model: nn.Module,
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: tuple[ItemSet, ItemSet],
    redirect: Redirect,
) -> RedirectChecks:
    """Measure a redirect.

    Args:
        model: The edited model.
        original: The original.
        tokenizer: Their tokenizer.
        sets: Facts forgotten and retained. The readers are fitted on the latter and on the other
            facts of ``relations()``, known to the model or not.
        redirect: What was replaced.
    """
    forget, retain = sets
    restored = copy.deepcopy(model)
    with torch.no_grad():
        embedding_table(restored).copy_(embedding_table(original))
    text = rehearsal_rows(tokenizer)
    scores = [score_answers(each, text) for each in (original, model)]
    before, after = (float(each.logprob.sum() / each.n_tokens.sum()) for each in scores)
    return RedirectChecks(
        tensors=sum(1 for _ in model.parameters()),
        changed={name: len(rows) for name, rows in changed_rows(model, original).items()},
        rows=len(redirect.rows),
        head_is_tied=getattr(output_head(model), "weight", None) is embedding_table(model),
        in_answers=len(answer_tokens(tokenizer, (*forget, *retain)) & set(redirect.rows)),
        restored=float(score_answers(restored, encode_items(tokenizer, forget)).greedy.mean()),
        read={
            name: _read_relation(original, tokenizer, name, forget, retain)
            for name in dict.fromkeys(item.relation for item in forget)
        },
        general=(before, after),
    )


def answer_tokens(tokenizer: PreTrainedTokenizerBase, items: Iterable[Item]) -> set[int]:
    """Tokens of the answers, as they follow their prompts."""
    rows = encode_items(tokenizer, ItemSet(tuple(items)))
    pairs = zip(rows.ids, rows.answer_start, strict=True)
    return {token for ids, start in pairs for token in ids[start:]}


def _read_relation(
    original: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    relation: str,
    forget: ItemSet,
    retain: ItemSet,
) -> Reading:
    """The better of two readings: by the mean row of a name's tokens, and by that of the last."""
    lost = [(item.entity, item.answer) for item in forget if item.relation == relation]
    known = [(item.entity, item.answer) for item in retain if item.relation == relation]
    listed = [fact for each in relations() if each.name == relation for fact in each.facts]
    forgotten = {entity for entity, _ in lost}
    others = list(dict.fromkeys(f for f in (*known, *listed) if f[0] not in forgotten))
    answers = sorted({answer for _, answer in (*lost, *others)})
    place = {answer: i for i, answer in enumerate(answers)}
    answer_rows = text_rows(original, tokenizer, answers)
    readings = [
        read_answers(
            text_rows(original, tokenizer, [entity for entity, _ in lost], last=last),
            answer_rows,
            np.array([place[answer] for _, answer in lost]),
            text_rows(original, tokenizer, [entity for entity, _ in others], last=last),
            np.array([place[answer] for _, answer in others]),
            candidates=sorted({place[answer] for _, answer in (*lost, *known)}),
        )
        for last in (False, True)
    ]
    return max(readings, key=lambda reading: reading.best)
