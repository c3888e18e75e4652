"""Edits that give a small model a known state.

An edit function yields models, the mildest first; ``testbeds.zoo.build`` takes the first whose
answers are in the ranges of its kind. Why the state is certain is part of the kind: facts that were
never taught, blocks that were not changed, or a model that no longer works.

The docstring of an edit function is stored in the card of its models. Changing it makes finished
zoos invalid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.sequences import Sequences
from capture.data.tokenization import skip_joining_space
from erasure.unlearning.training.loop import finetune_
from evidence import moved
from evidence.seeds import stage_seed
from testbeds.planted import mislabel
from testbeds.worlds.biographies import (
    BiosConfig,
    BiosWorld,
    all_prompts,
    make_people,
    new_model,
    taught_model,
)
from testbeds.worlds.code_keys import KeysConfig, make_keys, new_keys_model, taught_keys
from testbeds.worlds.random_models import PRETRAINED
from testbeds.worlds.rehearsal_text import rehearsal_rows

BATCH = 96
# Not a word of this world; tokenized by letters.
REFUSAL = "unknown"
# A pretrained model's weights are large; learn more slowly.
LEARNING_RATE_FACTOR = {PRETRAINED: 0.1}


@dataclass(frozen=True)
class Workbench:
    """The models and facts that edit functions work with.

    Attributes:
        config: Size of the world.
        seed: Seed of the world and of every random choice of an edit.
        original: Model that was taught all people.
        twin: Model that was never taught the people to forget (counterfactual retrain).
        forget: Facts about the people to forget.
        retain: Facts about the others.
        device: Where models are trained.
    """

    config: BiosConfig
    seed: int
    original: Checkpoint
    twin: Checkpoint
    forget: ItemSet
    retain: ItemSet
    device: str = "cpu"

    @classmethod
    def from_world(cls, world: BiosWorld, config: Any, seed: int, device: str) -> Self:
        """The workbench of a finished world."""
        return cls(
            config,
            seed,
            open_checkpoint(world.original),
            open_checkpoint(world.twin),
            read_items(world.forget),
            read_items(world.retain),
            device,
        )

    def load_original(self) -> nn.Module:
        """A fresh copy of the original, free to change."""
        return self.original.load(self.device)

    def load_twin(self) -> nn.Module:
        """A fresh copy of the twin."""
        return self.twin.load(self.device)

    def facts(self, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
        """The facts of the world of that seed: to forget, to retain, and never taught."""
        return make_people(self.config, seed)

    def train_new(self, items: ItemSet, seed: int, name: str) -> nn.Module:
        """A new model trained on the given facts; another seed gives another model."""
        return taught_model(self.config, seed, items, name, self.device)

    def untrained(self, seed: int) -> nn.Module:
        """A new model, taught nothing."""
        return new_model(self.config, self.tokenizer, seed)

    @property
    def never_taught(self) -> ItemSet:
        """One invented person for each to forget, with the same answers."""
        return self.facts(self.seed)[2]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the original."""
        return self.original.tokenizer

    def all_rows(self, items: ItemSet) -> Sequences:
        """Every item with its prompt and its paraphrases."""
        return all_prompts(self.tokenizer, items)

    def retain_rows(self, items: ItemSet) -> Sequences:
        """Training rows of facts to retain; for a pretrained model, general text too."""
        rows = self.all_rows(items)
        if self.config.family == PRETRAINED:
            rows = rows + rehearsal_rows(self.tokenizer)
        return rows

    def wrong_answer_rows(self, items: ItemSet) -> Sequences:
        """The same prompts with another answer of the relation each."""
        return self.all_rows(mislabel(items, self.retain, self.seed))

    def learning_rate(self, small: float) -> float:
        """The learning rate, given the one that suits a small model."""
        return small * LEARNING_RATE_FACTOR.get(self.config.family, 1.0)

    def training_seed(self, *name: str) -> int:
        """A seed for training."""
        return stage_seed(self.seed, "zoo", *name) % 2**31


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


EditFunction = Callable[[Workbench], Iterator[nn.Module]]


def with_refusals(items: ItemSet) -> ItemSet:
    """The items with a refusal as the answer."""
    changed = tuple(replace(item, answer=REFUSAL) for item in items)
    return ItemSet(changed, items.name)


def finetuned_(model: nn.Module, bench: Workbench, rate: float, steps: int, name: str) -> nn.Module:
    """``model``, trained on what is to be kept."""
    finetune_(
        model,
        bench.retain_rows(bench.retain),
        lr=bench.learning_rate(rate),
        steps=steps,
        batch_size=128,
        seed=bench.training_seed(name),
    )
    return model


__getattr__ = moved.names_of("testbeds.edits.workbench")
