"""The questions of an audit: item sets by role, and their rows by prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet, normalize_text
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, skip_joining_space
from evidence.errors import InputError


@dataclass(frozen=True)
class Questions:
    """Items asked in several wordings, one row a wording.

    Attributes:
        items: The items, in order.
        item_index: (row,) position of the row's item in ``items``.
        prompts: (row,) wording.
        wording: (row,) 0 for the item's own prompt, then its paraphrases.
    """

    items: tuple[Item, ...]
    item_index: tuple[int, ...]
    prompts: tuple[str, ...]
    wording: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def entities(self) -> list[str]:
        """(row,) entity."""
        return [self.items[index].entity for index in self.item_index]

    @property
    def answers(self) -> list[str]:
        """(row,) right answer."""
        return [self.items[index].answer for index in self.item_index]

    @property
    def ids(self) -> list[str]:
        """(row,) item id."""
        return [self.items[index].id for index in self.item_index]

    def select(self, rows: Sequence[bool] | np.ndarray) -> "Questions":
        """The rows marked True; every item stays, also one without rows."""
        chosen = [index for index, kept in enumerate(rows) if kept]
        return Questions(
            self.items,
            tuple(self.item_index[row] for row in chosen),
            tuple(self.prompts[row] for row in chosen),
            tuple(self.wording[row] for row in chosen),
        )

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> Sequences:
        """Token rows with their answers, from where answers can differ."""
        return skip_joining_space(
            tokenizer, encode(tokenizer, self.prompts, self.answers)
        )


def build_questions(items: ItemSet | Sequence[Item], n_prompts: int) -> Questions:
    """Each item's own prompt and up to ``n_prompts - 1`` of its paraphrases."""
    everything = tuple(items)
    rows = [
        (index, prompt, wording)
        for index, item in enumerate(everything)
        for wording, prompt in enumerate((item.prompt, *item.paraphrases)[:n_prompts])
    ]
    return Questions(
        everything,
        tuple(index for index, _, _ in rows),
        tuple(prompt for _, prompt, _ in rows),
        tuple(wording for _, _, wording in rows),
    )


def check_disjoint(forget: ItemSet, retain: ItemSet) -> None:
    """Forget and retain must not share an entity.

    Raises:
        InputError: naming the first shared entities.
    """
    known = {normalize_text(entity) for entity in retain.entities}
    shared = [entity for entity in forget.entities if normalize_text(entity) in known]
    if shared:
        raise InputError(
            f"forget and retain share {len(shared)} "
            f"{'entity' if len(shared) == 1 else 'entities'}, such as {shared[0]!r}",
            expected="no entity in both files",
            fix="Remove the shared entities from one of the files",
        )


def check_entity_count(items: ItemSet, min_entities: int, name: str) -> None:
    """At least ``min_entities`` entities must be there.

    Raises:
        InputError: saying how many are there and how many are missing.
    """
    present = len(items.entities)
    if present < min_entities:
        raise InputError(
            f"too few entities in {name}",
            expected=f"at least {min_entities}",
            got=str(present),
            fix=f"Add items about {min_entities - present} more",
        )
