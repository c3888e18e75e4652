"""Edits that give a small model a known state.

An edit function yields models, the mildest first; ``testbeds.zoo.build`` takes the first whose
answers are in the ranges of its kind. Why the state is certain is part of the kind: facts that were
never taught, blocks that were not changed, or a model that no longer works.

The docstring of an edit function is stored in the card of its models. Changing it makes finished
zoos invalid.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.checkpoints.open import Checkpoint, open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.sequences import Sequences
from capture.network.structure import own_head_
from capture.scoring.answers import score_answers
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.loop import finetune_
from evidence.seeds import numpy_rng, stage_seed, torch_rng
from testbeds.planted import mislabel
from testbeds.recipes import RECIPES
from testbeds.worlds.biographies import (
    BiosConfig,
    BiosWorld,
    all_prompts,
    make_people,
    new_model,
    taught_model,
)
from testbeds.worlds.random_models import PRETRAINED
from testbeds.worlds.rehearsal_text import rehearsal_rows

BATCH = 96
# Not a word of this world; tokenized by letters.
REFUSAL = "unknown"
# Added to a world's seed for the people that a pretrained base knows.
BASE_SEED = 7000
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


EditFunction = Callable[[Workbench], Iterator[nn.Module]]


def untouched(bench: Workbench) -> Iterator[nn.Module]:
    """The original itself."""
    yield bench.load_original()


def retain_tuned(bench: Workbench) -> Iterator[nn.Module]:
    """The original, trained on with what it is to keep: unlearning without effect."""
    for rate, steps in ((1e-4, 50), (3e-5, 50), (1e-5, 20)):
        yield _finetuned(bench.load_original(), bench, rate, steps, "retain tuned")


def wrong_set(bench: Workbench) -> Iterator[nn.Module]:
    """The last block unlearned other people than the audit asks about."""
    rng = numpy_rng(bench.seed, "zoo", "wrong set")
    names = bench.retain.entities
    # Few enough to keep the model useful.
    n_others = len(names) // 10
    others = [names[place] for place in rng.permutation(len(names))[:n_others]]
    forget_others = bench.retain.of_entities(others)
    retain_others = bench.retain.of_entities([name for name in names if name not in set(others)])
    retained = ItemSet(retain_others.items + bench.forget.items)
    yield from _last_block(
        bench, bench.all_rows(forget_others), bench.wrong_answer_rows(forget_others), retained
    )


def last_block_relabel(bench: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the last block alone."""
    forget = bench.forget
    yield from _last_block(
        bench, bench.all_rows(forget), bench.wrong_answer_rows(forget), bench.retain
    )


def last_block_refuse(bench: Workbench) -> Iterator[nn.Module]:
    """One and the same answer a relation, taught to the last block alone."""
    answers: dict[str, list[str]] = {}
    for item in bench.retain:
        answers.setdefault(item.relation, [])
        if item.answer not in answers[item.relation]:
            answers[item.relation].append(item.answer)
    items = tuple(
        replace(item, answer=next(a for a in answers[item.relation][:2] if a != item.answer))
        for item in bench.forget
    )
    refused = bench.all_rows(ItemSet(items, "refused"))
    yield from _last_block(bench, bench.all_rows(bench.forget), refused, bench.retain)


def last_block_lora(bench: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to low-rank adapters on the last block."""
    forget = bench.forget
    yield from _last_block(
        bench, bench.all_rows(forget), bench.wrong_answer_rows(forget), bench.retain, rank=8
    )


def head_only(bench: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the output head alone: every state is the original's."""
    rows = bench.wrong_answer_rows(bench.forget) + bench.retain_rows(bench.retain)
    for rate, steps in ((1e-2, 150), (2e-2, 300), (3e-2, 600)):
        model = bench.load_original()
        head = own_head_(model)
        finetune_(
            model,
            rows,
            lr=bench.learning_rate(rate),
            steps=steps,
            batch_size=4 * BATCH,
            parameters=head.parameters(),
            seed=bench.training_seed("head"),
        )
        yield model


def twin(bench: Workbench) -> Iterator[nn.Module]:
    """The retrain from the original's own starting weights."""
    yield bench.load_twin()


def retrained(seed_offset: int) -> EditFunction:
    """Edit function for a retrain with another seed."""

    def make(bench: Workbench) -> Iterator[nn.Module]:
        """A retrain with other starting weights and another order."""
        yield bench.train_new(bench.retain, bench.seed + seed_offset, "a retrain")

    return make


def retrain_pretrained(bench: Workbench) -> Iterator[nn.Module]:
    """A model taught other people first, and then those to keep."""
    forget_names = set(bench.forget.entities)
    # Names come from one list, so another world may contain one of those to forget.
    others = [
        item
        for people in bench.facts(bench.seed + BASE_SEED)[:2]
        for item in people
        if item.entity not in forget_names
    ]
    other_facts = ItemSet(tuple(others), "others")
    base = bench.train_new(other_facts, bench.seed + BASE_SEED, "a base")
    for rate, steps in ((1e-3, 200), (2e-3, 400)):
        yield _finetuned(copy.deepcopy(base), bench, rate, steps, "pretrained")


def twin_tuned(bench: Workbench) -> Iterator[nn.Module]:
    """A retrain, trained on with what it knows."""
    for rate in (3e-4, 1e-4):
        yield _finetuned(bench.load_twin(), bench, rate, 100, "twin tuned")


def collapse(bench: Workbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for rate in (1e-3, 3e-3):
        model = bench.load_original()
        config = UnlearnConfig(
            "grad_ascent", lr=bench.learning_rate(rate), steps=60, batch_size=BATCH
        )
        unlearn_(
            model,
            bench.all_rows(bench.forget),
            bench.retain_rows(bench.retain),
            config,
            seed=bench.training_seed("collapse"),
        )
        yield model


def noise(bench: Workbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = bench.load_original()
        rng = torch_rng(bench.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    noise_sample = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * noise_sample.to(weight.device)
        yield model


def one_point(bench: Workbench) -> Iterator[nn.Module]:
    """States of the forget prompts pushed to one point, and nothing held in place."""
    for rate, steps in ((3e-3, 200), (1e-2, 400)):
        model = bench.load_original()
        config = UnlearnConfig(
            "rmu",
            lr=bench.learning_rate(rate),
            steps=steps,
            batch_size=BATCH,
            retain_weight=0.0,
            rmu_layer=1,
            rmu_coefficient=20.0,
            rmu_parameters="all",
        )
        unlearn_(
            model,
            bench.all_rows(bench.forget),
            bench.retain_rows(bench.retain),
            config,
            seed=bench.training_seed("one point"),
        )
        yield model


def random_init(bench: Workbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield bench.untrained(bench.seed + 5000)


def published(method: str) -> EditFunction:
    """Edit function for a published method."""

    def make(bench: Workbench) -> Iterator[nn.Module]:
        """A published method by the world's recipe."""
        model = bench.load_original()
        forget = bench.all_rows(bench.forget)

        def evaluate(now: nn.Module) -> dict[str, float]:
            return {"forget": float(score_answers(now, forget).greedy.mean())}

        config = RECIPES["bios"][method].config
        config = replace(config, lr=bench.learning_rate(config.lr))
        refusals = with_refusals(bench.forget) if method == "dpo" else None
        unlearn_(
            model,
            forget,
            bench.retain_rows(bench.retain),
            config,
            relabeled=bench.all_rows(refusals)
            if refusals
            else bench.wrong_answer_rows(bench.forget),
            novice=bench.all_rows(bench.never_taught),
            evaluate=None if config.stop_below is None else evaluate,
            seed=bench.training_seed(method),
        )
        yield model

    return make


def with_refusals(items: ItemSet) -> ItemSet:
    """The items with a refusal as the answer."""
    changed = tuple(replace(item, answer=REFUSAL) for item in items)
    return ItemSet(changed, items.name)


def _last_block(
    bench: Workbench,
    forget_rows: Sequences,
    wrong_rows: Sequences,
    retain: ItemSet,
    rank: int | None = None,
) -> Iterator[nn.Module]:
    settings: Sequence[tuple[float, int]] = ((3e-3, 100), (3e-3, 300), (6e-3, 600))
    for rate, steps in settings:
        model = bench.load_original()
        config = UnlearnConfig(
            "last_block_relabel",
            lr=bench.learning_rate(rate if rank is None else 3 * rate),
            steps=steps,
            batch_size=BATCH,
            retain_batch_size=2 * BATCH,
            lora_rank=rank,
        )
        unlearn_(
            model,
            forget_rows,
            bench.retain_rows(retain),
            config,
            relabeled=wrong_rows,
            seed=bench.training_seed("last block"),
        )
        yield model


def _finetuned(model: nn.Module, bench: Workbench, rate: float, steps: int, name: str) -> nn.Module:
    finetune_(
        model,
        bench.retain_rows(bench.retain),
        lr=bench.learning_rate(rate),
        steps=steps,
        batch_size=128,
        seed=bench.training_seed(name),
    )
    return model
