"""The workbench of the codes world."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.data.tokenization import skip_joining_space
from testbeds.edits.workbench import Workbench
from testbeds.worlds.code_keys import KeysConfig, make_keys, new_keys_model, taught_keys


@dataclass(frozen=True)
class CodesWorkbench(Workbench):
    """The workbench of this world."""

    config: KeysConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def all_rows(self, items: ItemSet) -> Sequences:
        """Every item with all its prompts; the answer starts at its first digit."""
        return skip_joining_space(self.tokenizer, super().all_rows(items))

    def facts(self, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
        """As ``make_keys``."""
        return make_keys(self.config, seed)

    def train_new(self, items: ItemSet, seed: int, name: str) -> PreTrainedModel:
        """A new model; it sees the other keys of this world with random codes."""
        return taught_keys(self.config, seed, items, self._unknown(items), name, self.device)

    def untrained(self, seed: int) -> PreTrainedModel:
        """A model with random weights."""
        return new_keys_model(self.config, seed)

    def _unknown(self, items: ItemSet) -> ItemSet:
        taught = set(items.entities)
        untaught = (*self.forget, *self.never_taught)
        return ItemSet(tuple(item for item in untaught if item.entity not in taught))
