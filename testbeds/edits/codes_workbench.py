"""The workbench of the world of code keys: data and training for its edits."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from capture.data.tokenization import skip_joining_space
from testbeds.edits.workbench import Workbench
from testbeds.worlds.code_keys import KeysConfig, make_keys, new_keys_model, taught_keys


@dataclass(frozen=True)
class CodesWorkbench(Workbench):
    """What makers work with in this world, as ``Workbench`` in the other."""

    config: KeysConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def all_rows(self, items: ItemSet) -> Sequences:
        """Every item in all its wordings, the answer from its first digit on."""
        return skip_joining_space(self.tokenizer, super().all_rows(items))

    def facts(self, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
        """As ``make_keys``."""
        return make_keys(self.config, seed)

    def train_new(self, items: ItemSet, seed: int, name: str) -> PreTrainedModel:
        """A new model; of this world's keys it sees the others with codes drawn."""
        return taught_keys(
            self.config, seed, items, self._unknown(items), name, self.device
        )

    def untrained(self, seed: int) -> PreTrainedModel:
        """Weights that were never trained."""
        return new_keys_model(self.config, seed)

    def _unknown(self, items: ItemSet) -> ItemSet:
        taught = set(items.entities)
        never = (*self.forget, *self.never_taught)
        return ItemSet(tuple(item for item in never if item.entity not in taught))
