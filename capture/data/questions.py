"""Questions: items expanded to one row per prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from capture.data.items import Item, ItemSet
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, skip_joining_space
from evidence.errors import InputError


@dataclass(frozen=True)
class Questions:
    """Items with several prompts, one row per prompt.

    Attributes:
        items: The items, in order.
        item_index: (row,) index of the row's item in ``items``.
        prompts: (row,) prompt.
        wording: (row,) 0 for the item's own prompt, 1, 2, ... for its paraphrases.
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
        """(row,) correct answer."""
        return [self.items[index].answer for index in self.item_index]

    @property
    def ids(self) -> list[str]:
        """(row,) item id."""
        return [self.items[index].id for index in self.item_index]

    def select(self, rows: Sequence[bool] | np.ndarray) -> "Questions":
        """The rows that are True in a mask; ``items`` is unchanged."""
        chosen = [index for index, kept in enumerate(rows) if kept]
        return Questions(
            self.items,
            tuple(self.item_index[row] for row in chosen),
            tuple(self.prompts[row] for row in chosen),
            tuple(self.wording[row] for row in chosen),
        )

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> Sequences:
        """Token rows; answers start at the first token that can differ between answers."""
        return skip_joining_space(tokenizer, encode(tokenizer, self.prompts, self.answers))


def build_questions(items: ItemSet | Sequence[Item], n_prompts: int) -> Questions:
    """One row per item for its own prompt and up to ``n_prompts - 1`` of its paraphrases."""
    all_items = tuple(items)
    rows = [
        (index, prompt, wording)
        for index, item in enumerate(all_items)
        for wording, prompt in enumerate((item.prompt, *item.paraphrases)[:n_prompts])
    ]
    return Questions(
        all_items,
        tuple(index for index, _, _ in rows),
        tuple(prompt for _, prompt, _ in rows),
        tuple(wording for _, _, wording in rows),
    )


def check_entity_count(items: ItemSet, min_entities: int, name: str) -> None:
    """Check that there are at least ``min_entities`` entities.

    Raises:
        InputError: there are fewer.
    """
    n_entities = len(items.entities)
    if n_entities < min_entities:
        raise InputError(
            f"too few entities in {name}",
            expected=f"at least {min_entities}",
            got=str(n_entities),
            fix=f"Add items about {min_entities - n_entities} more",
        )
