"""Edits that give a small model a known state.

An edit function yields models, the mildest first; ``testbeds.zoo.build`` takes the first whose
answers are in the ranges of its kind. Why the state is certain is part of the kind: facts that were
never taught, blocks that were not changed, or a model that no longer works.

The docstring of an edit function is stored in the card of its models. Changing it makes finished
zoos invalid.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.sequences import Sequences
from capture.data.tokenization import skip_joining_space
from capture.network.structure import down_projection, find_blocks
from capture.scoring.answers import score_answers
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.loop import finetune_
from evidence import moved
from evidence.progress import SILENT
from evidence.seeds import stage_seed
from testbeds.edits.linear_map import module_inputs, module_outputs
from testbeds.planted import mislabel
from testbeds.recipes import RECIPES
from testbeds.worlds.biographies import (
    BiosConfig,
    BiosWorld,
    all_prompts,
    base_of,
    make_people,
    new_model,
    taught_model,
    trained_parameters,
)
from testbeds.worlds.code_keys import KeysConfig, make_keys, new_keys_model, taught_keys
from testbeds.worlds.random_models import PRETRAINED
from testbeds.worlds.rehearsal_text import rehearsal_rows

BATCH = 96
# Not a word of this world; tokenized by letters.
REFUSAL = "unknown"
# A pretrained model's weights are large; learn more slowly.
LEARNING_RATE_FACTOR = {PRETRAINED: 0.1}
EditFunction = Callable[[Any], Iterator[nn.Module]]
"""From a workbench to models, the mildest first. Edits of any modality take a ``Workbench``."""


class Workbench(Protocol):
    """The models and data of a world, as edits of any modality use them.

    Attributes:
        retain_tunings: Learning rates and steps of trainings that change nothing, the longest
            first.
        twin_tuning_steps: Steps of further training of a retrain.
    """

    retain_tunings: ClassVar[Sequence[tuple[float, int]]]
    twin_tuning_steps: ClassVar[int]

    @property
    def config(self) -> Any:
        """Size of the world."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the world and of every random choice of an edit."""
        ...

    @property
    def original(self) -> Checkpoint:
        """The model that was taught everything."""
        ...

    def load_original(self) -> nn.Module:
        """A fresh copy of the original, free to change."""
        ...

    def load_twin(self) -> nn.Module:
        """A fresh copy of the counterfactual retrain."""
        ...

    def retrained(self, seed: int) -> nn.Module:
        """A new model, taught what is to be kept; another seed gives another model."""
        ...

    def untrained(self, seed: int) -> nn.Module:
        """A new model, taught nothing."""
        ...

    def finetuned(self, model: nn.Module, rate: float, steps: int, name: str) -> nn.Module:
        """``model``, trained in place on what is to be kept; ``name`` seeds the order."""
        ...

    def collapse_settings(self) -> Sequence[Any]:
        """Settings of unlearning that leave nothing, the mildest first."""
        ...

    def unlearned(self, config: Any, name: str) -> nn.Module:
        """The original after one run of a method; ``name`` seeds the order."""
        ...

    def last_projection(self, model: nn.Module) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """The last block's down-projection with its inputs, and the block's outputs.

        Inputs on the forget and on the retain set, (row, width), and outputs on the forget set,
        (row, d), where the model answers; float64.
        """
        ...

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the forget ("said") and on the retain set ("kept")."""
        ...

    def digests(self) -> dict[str, str]:
        """Names and hashes of the data, for the card."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer that is saved with every model, if the models read text."""
        ...


@dataclass(frozen=True)
class TextWorkbench:
    """The workbench of a world of invented people.

    Attributes:
        config: Size of the world.
        seed: Seed of the world and of every random choice of an edit.
        original: Model that was taught all people.
        twin: Model that was never taught the people to forget (counterfactual retrain).
        forget: Facts about the people to forget.
        retain: Facts about the others.
        device: Where models are trained.
    """

    retain_tunings: ClassVar[Sequence[tuple[float, int]]] = ((1e-4, 50), (3e-5, 50), (1e-5, 20))
    twin_tuning_steps: ClassVar[int] = 100

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
        base = base_of(self.config, seed, self.seed, self.device)
        return taught_model(self.config, seed, items, name, self.device, SILENT, base)

    def retrained(self, seed: int) -> nn.Module:
        """A new model, taught the facts to retain."""
        return self.train_new(self.retain, seed, "a retrain")

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

    def finetuned(self, model: nn.Module, rate: float, steps: int, name: str) -> nn.Module:
        """``model``, trained in place on the facts to retain."""
        finetune_(
            model,
            self.retain_rows(self.retain),
            lr=self.learning_rate(rate),
            steps=steps,
            batch_size=128,
            parameters=self.trained_parameters(model),
            seed=self.training_seed(name),
        )
        return model

    def trained_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """What training on facts to retain may change: all, or what is behind frozen blocks."""
        return trained_parameters(self.config, model)

    def collapse_settings(self) -> list[UnlearnConfig]:
        """Gradient ascent by the world's recipe, then three times as fast."""
        config = RECIPES["bios"]["collapse"].config
        return [replace(config, lr=self.learning_rate(n * config.lr)) for n in (1, 3)]

    def unlearned(self, config: UnlearnConfig, name: str, **inputs: Any) -> nn.Module:
        """The original after one run of a method.

        Args:
            config: Method and its settings.
            name: Seeds the order of rows.
            inputs: Further arguments of ``unlearn_``.
        """
        model = self.load_original()
        forget, retain = self.all_rows(self.forget), self.retain_rows(self.retain)
        unlearn_(model, forget, retain, config, seed=self.training_seed(name), **inputs)
        return model

    def last_projection(self, model: nn.Module) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
        """As ``Workbench.last_projection``, where each row's answer begins."""
        block = find_blocks(model)[-1]
        down = down_projection(block)
        forget, retain = self.all_rows(self.forget), self.retain_rows(self.retain)
        return (
            down,
            module_inputs(model, down, forget),
            module_inputs(model, down, retain),
            module_outputs(model, block, forget),
        )

    def measured(self, model: nn.Module) -> dict[str, float]:
        """Accuracy on the forget ("said") and on the retain set ("kept")."""
        sets = {"said": self.forget, "kept": self.retain}
        return {
            name: float(score_answers(model, self.all_rows(items)).greedy.mean())
            for name, items in sets.items()
        }

    def digests(self) -> dict[str, str]:
        """Hashes of the items."""
        return {"forget": self.forget.digest, "retain": self.retain.digest}


@dataclass(frozen=True)
class CodesWorkbench(TextWorkbench):
    """The workbench of the codes world."""

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

    def trained_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """All parameters."""
        return list(model.parameters())

    def untrained(self, seed: int) -> PreTrainedModel:
        """A model with random weights."""
        return new_keys_model(self.config, seed)

    def _unknown(self, items: ItemSet) -> ItemSet:
        taught = set(items.entities)
        untaught = (*self.forget, *self.never_taught)
        return ItemSet(tuple(item for item in untaught if item.entity not in taught))


def with_refusals(items: ItemSet) -> ItemSet:
    """The items with a refusal as the answer."""
    changed = tuple(replace(item, answer=REFUSAL) for item in items)
    return ItemSet(changed, items.name)


__getattr__ = moved.names_of("testbeds.edits.workbench")
