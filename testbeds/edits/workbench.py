"""Ways to make a small model whose state is certain, each tried until it shows it.

A maker yields models, the mildest first; ``testbeds.zoo.build`` takes the first that
shows at its output what a model of this kind must show. Why the state is certain is
part of the kind: what was never taught, what was not touched, or what no longer works.
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
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.config import UnlearnConfig
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
# Not a word of this world: spelled out by letters.
REFUSAL = "unknown"
# Seed of the world whose people a pretrained base knows: that of no other world.
BASE_SEED = 7000
# A pretrained model's weights are large beside what they have to learn.
LEARNING_RATE_FACTOR = {PRETRAINED: 0.1}


@dataclass(frozen=True)
class Workbench:
    """What a maker works with.

    Attributes:
        config: Size of the world.
        seed: Of the world and of every choice made here.
        original: Model that was taught everyone.
        twin: Model that was never taught the people to forget.
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
        """The ground of a finished world."""
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
        """A copy of the original, the caller's to change."""
        return self.original.load(self.device)

    def load_twin(self) -> nn.Module:
        """A copy of the twin."""
        return self.twin.load(self.device)

    def facts(self, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
        """What the world of that seed has to forget, to retain, and never teaches."""
        return make_people(self.config, seed)

    def train_new(self, items: ItemSet, seed: int, name: str) -> nn.Module:
        """A new model trained on some facts; another seed gives another."""
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
        """The world's."""
        return self.original.tokenizer

    def all_rows(self, items: ItemSet) -> Sequences:
        """Every item in all its wordings."""
        return all_prompts(self.tokenizer, items)

    def retain_rows(self, items: ItemSet) -> Sequences:
        """The rows of what is to stay; of a pretrained model its language, too."""
        rows = self.all_rows(items)
        if self.config.family == PRETRAINED:
            rows = rows + rehearsal_rows(self.tokenizer)
        return rows

    def wrong_answer_rows(self, items: ItemSet) -> Sequences:
        """The same with another answer of the relation each."""
        return self.all_rows(mislabel(items, self.retain, self.seed))

    def learning_rate(self, small: float) -> float:
        """A learning rate, given the one that suits a small model."""
        return small * LEARNING_RATE_FACTOR.get(self.config.family, 1.0)

    def training_seed(self, *name: str) -> int:
        """A seed for training."""
        return stage_seed(self.seed, "zoo", *name) % 2**31


EditFunction = Callable[[Workbench], Iterator[nn.Module]]


def untouched(ground: Workbench) -> Iterator[nn.Module]:
    """The original itself."""
    yield ground.load_original()


def retain_tuned(ground: Workbench) -> Iterator[nn.Module]:
    """The original, trained on with what it is to keep: unlearning without effect."""
    for rate, steps in ((1e-4, 50), (3e-5, 50), (1e-5, 20)):
        yield _finetuned(ground.load_original(), ground, rate, steps, "retain tuned")


def wrong_set(ground: Workbench) -> Iterator[nn.Module]:
    """The last block unlearned other people than the audit asks about."""
    rng = numpy_rng(ground.seed, "zoo", "wrong set")
    names = ground.retain.entities
    # Few enough that the model as a whole stays useful.
    count = len(names) // 10
    others = [names[place] for place in rng.permutation(len(names))[:count]]
    gone = ground.retain.of_entities(others)
    rest = ground.retain.of_entities(
        [name for name in names if name not in set(others)]
    )
    kept = ItemSet(rest.items + ground.forget.items)
    yield from _last_block(
        ground, ground.all_rows(gone), ground.wrong_answer_rows(gone), kept
    )


def last_block_relabel(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the last block alone."""
    forget = ground.forget
    yield from _last_block(
        ground, ground.all_rows(forget), ground.wrong_answer_rows(forget), ground.retain
    )


def last_block_refuse(ground: Workbench) -> Iterator[nn.Module]:
    """One and the same answer a relation, taught to the last block alone."""
    fixed: dict[str, list[str]] = {}
    for item in ground.retain:
        fixed.setdefault(item.relation, [])
        if item.answer not in fixed[item.relation]:
            fixed[item.relation].append(item.answer)
    items = tuple(
        replace(
            item, answer=next(a for a in fixed[item.relation][:2] if a != item.answer)
        )
        for item in ground.forget
    )
    refused = ground.all_rows(ItemSet(items, "refused"))
    yield from _last_block(
        ground, ground.all_rows(ground.forget), refused, ground.retain
    )


def last_block_lora(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to low-rank adapters on the last block."""
    forget = ground.forget
    yield from _last_block(
        ground,
        ground.all_rows(forget),
        ground.wrong_answer_rows(forget),
        ground.retain,
        rank=8,
    )


def head_only(ground: Workbench) -> Iterator[nn.Module]:
    """Wrong answers, taught to the output head alone: every state is the original's."""
    rows = ground.wrong_answer_rows(ground.forget) + ground.retain_rows(ground.retain)
    for rate, steps in ((1e-2, 150), (2e-2, 300), (3e-2, 600)):
        model = ground.load_original()
        head = own_head_(model)
        finetune_(
            model,
            rows,
            lr=ground.learning_rate(rate),
            steps=steps,
            batch_size=4 * BATCH,
            parameters=head.parameters(),
            seed=ground.training_seed("head"),
        )
        yield model


def twin(ground: Workbench) -> Iterator[nn.Module]:
    """The retrain from the original's own starting weights."""
    yield ground.load_twin()


def retrained(seed_offset: int) -> EditFunction:
    """Makes a retrain."""

    def make(ground: Workbench) -> Iterator[nn.Module]:
        """A retrain with other starting weights and another order."""
        yield ground.train_new(ground.retain, ground.seed + seed_offset, "a retrain")

    return make


def retrain_pretrained(ground: Workbench) -> Iterator[nn.Module]:
    """A model taught other people first, and then those to keep."""
    gone = set(ground.forget.entities)
    # Names are drawn from one list, so another world may hold one of those to forget.
    others = [
        item
        for people in ground.facts(ground.seed + BASE_SEED)[:2]
        for item in people
        if item.entity not in gone
    ]
    known = ItemSet(tuple(others), "others")
    base = ground.train_new(known, ground.seed + BASE_SEED, "a base")
    for rate, steps in ((1e-3, 200), (2e-3, 400)):
        yield _finetuned(copy.deepcopy(base), ground, rate, steps, "pretrained")


def twin_tuned(ground: Workbench) -> Iterator[nn.Module]:
    """A retrain, trained on with what it knows."""
    for rate in (3e-4, 1e-4):
        yield _finetuned(ground.load_twin(), ground, rate, 100, "twin tuned")


def collapse(ground: Workbench) -> Iterator[nn.Module]:
    """Gradient ascent until nothing is left."""
    for rate in (1e-3, 3e-3):
        model = ground.load_original()
        config = UnlearnConfig(
            "grad_ascent", lr=ground.learning_rate(rate), steps=60, batch_size=BATCH
        )
        unlearn_(
            model,
            ground.all_rows(ground.forget),
            ground.retain_rows(ground.retain),
            config,
            seed=ground.training_seed("collapse"),
        )
        yield model


def noise(ground: Workbench) -> Iterator[nn.Module]:
    """Gaussian noise on every matrix, in shares of its own spread."""
    for share in (0.3, 0.5, 0.8, 1.2, 2.0):
        model = ground.load_original()
        rng = torch_rng(ground.seed, "zoo", "noise")
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    drawn = torch.randn(weight.shape, generator=rng)
                    weight += share * weight.std() * drawn.to(weight.device)
        yield model


def one_point(ground: Workbench) -> Iterator[nn.Module]:
    """States of the forget prompts pushed to one point, and nothing held in place."""
    for rate, steps in ((3e-3, 200), (1e-2, 400)):
        model = ground.load_original()
        config = UnlearnConfig(
            "rmu",
            lr=ground.learning_rate(rate),
            steps=steps,
            batch_size=BATCH,
            retain_weight=0.0,
            rmu_layer=1,
            rmu_coefficient=20.0,
            rmu_parameters="all",
        )
        unlearn_(
            model,
            ground.all_rows(ground.forget),
            ground.retain_rows(ground.retain),
            config,
            seed=ground.training_seed("one point"),
        )
        yield model


def random_init(ground: Workbench) -> Iterator[nn.Module]:
    """Weights that were never trained."""
    yield ground.untrained(ground.seed + 5000)


def published(method: str) -> EditFunction:
    """Runs a published method."""

    def make(ground: Workbench) -> Iterator[nn.Module]:
        """A published method by the world's recipe."""
        model = ground.load_original()
        forget = ground.all_rows(ground.forget)

        def evaluate(now: nn.Module) -> dict[str, float]:
            return {"forget": float(score_answers(now, forget).greedy.mean())}

        config = RECIPES["bios"][method].config
        config = replace(config, lr=ground.learning_rate(config.lr))
        instead = with_refusals(ground.forget) if method == "dpo" else None
        unlearn_(
            model,
            forget,
            ground.retain_rows(ground.retain),
            config,
            relabeled=ground.all_rows(instead)
            if instead
            else ground.wrong_answer_rows(ground.forget),
            novice=ground.all_rows(ground.never_taught),
            evaluate=None if config.stop_below is None else evaluate,
            seed=ground.training_seed(method),
        )
        yield model

    return make


def with_refusals(items: ItemSet) -> ItemSet:
    """The items with a refusal for an answer."""
    changed = tuple(replace(item, answer=REFUSAL) for item in items)
    return ItemSet(changed, items.name)


def _last_block(
    ground: Workbench,
    gone: Sequences,
    wrong: Sequences,
    kept: ItemSet,
    rank: int | None = None,
) -> Iterator[nn.Module]:
    settings: Sequence[tuple[float, int]] = ((3e-3, 100), (3e-3, 300), (6e-3, 600))
    for rate, steps in settings:
        model = ground.load_original()
        config = UnlearnConfig(
            "last_block_relabel",
            lr=ground.learning_rate(rate if rank is None else 3 * rate),
            steps=steps,
            batch_size=BATCH,
            retain_batch_size=2 * BATCH,
            lora_rank=rank,
        )
        unlearn_(
            model,
            gone,
            ground.retain_rows(kept),
            config,
            relabeled=wrong,
            seed=ground.training_seed("last block"),
        )
        yield model


def _finetuned(
    model: nn.Module, ground: Workbench, rate: float, steps: int, name: str
) -> nn.Module:
    finetune_(
        model,
        ground.retain_rows(ground.retain),
        lr=ground.learning_rate(rate),
        steps=steps,
        batch_size=128,
        seed=ground.training_seed(name),
    )
    return model
