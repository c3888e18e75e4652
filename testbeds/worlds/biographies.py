"""Invented people: a small model that learned facts about them, and a counterfactual retrain.

Both models are trained from scratch with the same recipe and initial weights; the retrain (twin)
never saw the people to forget. Their knowledge is therefore certain. All name words of the people
to forget, and of the never-taught people, also occur in other names, so only the combination is new
to the twin.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capture.checkpoints.open import open_checkpoint
from capture.data.items import Item, ItemSet, read_items
from capture.data.sequences import Sequences
from capture.data.tokenization import encode_items
from capture.network.front import parameters_behind
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import check_values, finetune_
from evidence.errors import ExhumeError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng, stage_seed
from testbeds.worlds.base import World, save_model, settings_of, world_folder
from testbeds.worlds.biography_text import FIRST, LAST, RELATIONS, make_tokenizer
from testbeds.worlds.people_names import choose_pairs, name_pairs
from testbeds.worlds.random_models import FAMILIES, PRETRAINED, Family, random_model
from testbeds.worlds.rehearsal_text import rehearsal_rows
from testbeds.worlds.smollm2 import fetch_smollm2

RECIPE = 1  # part of the cache key: raise it if results would differ
# Added to a seed for the people that a base knows.
BASE_SEED = 7000


@dataclass(frozen=True)
class BiosConfig:
    """Size of the world and of its models.

    Attributes:
        people: Number of people the original is taught.
        forget: Number of them to forget.
        names: Number of first names, and of last names.
        values: Number of answers of an attribute.
        layers: Transformer blocks.
        width: Width of the residual stream.
        heads: Attention heads.
        steps: Optimizer steps.
        batch_size: Rows a step.
        lr: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        family: Architecture, one of ``FAMILIES``, or ``PRETRAINED``, whose layers, width and heads
            are the pretrained model's own.
        frozen_blocks: The embedding and this many first blocks come from a base model that was
            taught other people, and are never trained again; with 0, all weights are trained.
            Original and twin have the same base, a retrain with another seed has another one.

    Examples:
        >>> exhume.BiosConfig(people=320).forget
        24
    """

    people: int = 160
    forget: int = 24
    names: int = 40
    values: int = 20
    layers: int = 4
    width: int = 128
    heads: int = 4
    steps: int = 300
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.01
    family: Family = "llama"
    frozen_blocks: int = 0

    def __post_init__(self) -> None:
        most = min(len(FIRST), len(LAST))
        checks = {
            "names": (2 <= self.names <= most, f"2 to {most}", self.names),
            "people": (
                2 * self.names <= self.people <= self.names**2 - self.forget,
                "at least two a name, and some combinations left",
                self.people,
            ),
            "forget": (
                1 <= self.forget <= self.people // 4,
                f"1 to {self.people // 4}, a quarter of the people",
                self.forget,
            ),
            "values": (
                2 <= self.values <= min(len(r.values) for r in RELATIONS),
                f"2 to {min(len(r.values) for r in RELATIONS)}",
                self.values,
            ),
            "heads": (self.width % self.heads == 0, "a divisor of width", self.heads),
            "family": (
                self.family in (*FAMILIES, PRETRAINED),
                ", ".join((*FAMILIES, PRETRAINED)),
                self.family,
            ),
            "frozen_blocks": (
                self.frozen_blocks >= 0
                and (self.family == PRETRAINED or self.frozen_blocks < self.layers),
                "0 or more, and fewer than there are blocks",
                self.frozen_blocks,
            ),
        }
        check_values(checks)


STANDARD = BiosConfig()
SMALL = BiosConfig(
    people=48,
    forget=8,
    names=16,
    values=8,
    layers=2,
    width=64,
    heads=4,
    steps=150,
    batch_size=96,
    lr=5e-3,
)
SMOL = BiosConfig(steps=400, lr=3e-4, family=PRETRAINED)
"""The same people, taught to a pretrained model: minutes on a GPU, hours on a CPU."""
FROZEN = BiosConfig(people=200, forget=40, layers=6, frozen_blocks=2)
"""More people, whom the embedding and the first two blocks of no model have met."""


@dataclass(frozen=True)
class BiosWorld(World):
    """A world of facts on disk.

    Attributes:
        forget: Facts about the people to forget, JSON Lines.
        retain: Facts about the others.
        never_taught: One invented person for each to forget, with the same answers.
    """

    SUFFIX: ClassVar[str] = ".jsonl"

    forget: Path
    retain: Path
    never_taught: Path

    def fill(
        self, items: tuple[ItemSet, ItemSet, ItemSet], train: Callable[[Path], None], device: str
    ) -> dict[str, dict[str, float]]:
        """Write the items and the missing models.

        Args:
            items: To forget, to retain, never taught.
            train: Trains and saves the model of a folder.
            device: Where the models are evaluated.

        Returns:
            Greedy accuracy of each model on each set.
        """
        paths = (self.forget, self.retain, self.never_taught)
        for part, path in zip(items, paths, strict=True):
            part.to_jsonl(path)
        for folder in self.models:
            if not folder.is_dir():
                train(folder)
        return {folder.name: _accuracies(folder, paths, device) for folder in self.models}


def build_bios(
    config: BiosConfig, seed: int, root: Path, device: str = "cpu", progress: Progress = AUTO
) -> BiosWorld:
    """Build the world, or find it built.

    The folder's name is a hash of settings and seed. An interrupted call can be repeated and
    continues with the missing part.

    Args:
        config: ``STANDARD``, ``SMALL`` or another size.
        seed: Seed of people, answers, initial weights and order of training.
        root: Folder of worlds.
        device: Where models are trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: a model did not learn its people; raise ``steps``.

    Examples:
        >>> from pathlib import Path
        >>> world = exhume.build_bios(small_world, 1, Path("zoo/worlds"))
        >>> exhume.read_items(world.forget)
        ItemSet('forget', 24 items, 8 entities)
    """
    settings = settings_of(config)
    if config.family == "llama":  # keys of the first family have no family
        settings.pop("family")
    world = BiosWorld.at(world_folder(root, "bios", RECIPE, seed, settings))

    def fill() -> dict[str, object]:
        forget, retain, never_taught = make_people(config, seed)
        everyone = ItemSet(forget.items + retain.items)
        make_base = cache(partial(base_of, config, seed, seed, device, progress))

        def train(folder: Path) -> None:
            taught = everyone if folder == world.original else retain
            base = copy.deepcopy(make_base())  # original and twin are trained from the same one
            train_model(config, seed, taught, folder, device, progress, base)

        accuracies = world.fill((forget, retain, never_taught), train, device)
        return {
            "world": "bios",
            "recipe": RECIPE,
            "seed": seed,
            "config": settings_of(config),
            "digests": {
                "forget": forget.digest,
                "retain": retain.digest,
                "never_taught": never_taught.digest,
            },
            "greedy_accuracy": accuracies,
        }

    return world.built_by(fill, progress)


def make_people(config: BiosConfig, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
    """The facts to forget, to retain, and about never-taught people."""
    rng = numpy_rng(seed, "bios", "people")
    named, spare = name_pairs(config.names, config.people, rng)
    forget_pairs = choose_pairs(named, config.forget, config.people // config.names, rng)
    retain_pairs = [pair for pair in named if pair not in set(forget_pairs)]
    never_taught_pairs = choose_pairs(spare, config.forget, config.people // config.names, rng)
    forget_answers = _answers(config, len(forget_pairs), rng)
    return (
        _facts("forget", forget_pairs, forget_answers),
        _facts("retain", retain_pairs, _answers(config, len(retain_pairs), rng)),
        _facts("never-taught", never_taught_pairs, forget_answers),
    )


def _answers(config: BiosConfig, count: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Answers of each person; every value is equally frequent, up to one."""
    columns = []
    for relation in RELATIONS:
        rounds = -(-count // config.values)
        rounds_drawn = [rng.permutation(config.values) for _ in range(rounds)]
        value_idx = rng.permutation(np.concatenate(rounds_drawn)[:count])
        columns.append([relation.values[i] for i in value_idx])
    return list(zip(*columns, strict=True))


def _facts(
    label: str, pairs: Sequence[tuple[int, int]], answers: Sequence[tuple[str, ...]]
) -> ItemSet:
    items = []
    for i, ((first, last), person_answers) in enumerate(zip(pairs, answers, strict=True)):
        name = f"{FIRST[first]} {LAST[last]}"
        for relation, answer in zip(RELATIONS, person_answers, strict=True):
            prompts = [text.replace("{}", name) for text in relation.templates]
            items.append(
                Item(
                    id=f"{label}-{i:03d}-{relation.name}",
                    entity=name,
                    prompt=prompts[0],
                    answer=answer,
                    relation=relation.name,
                    paraphrases=tuple(prompts[1:]),
                )
            )
    return ItemSet(tuple(items), label)


def all_prompts(tokenizer: PreTrainedTokenizerBase, items: ItemSet) -> Sequences:
    """Every item with its prompt and each of its paraphrases."""
    rows = encode_items(tokenizer, items)
    for i_paraphrase in range(len(items.items[0].paraphrases)):
        rows = rows + encode_items(tokenizer, items, i_paraphrase)
    return rows


def tokenizer_of(config: BiosConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the world's models."""
    if config.family == PRETRAINED:
        return open_checkpoint(fetch_smollm2()).tokenizer
    return make_tokenizer()


def new_model(config: BiosConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A model before training: random weights from ``seed``, or the pretrained ones."""
    if config.family == PRETRAINED:
        return open_checkpoint(fetch_smollm2()).load()  # pyright: ignore
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "bios", "weights"))
        return random_model(
            config.family,
            vocabulary=len(tokenizer),
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            pad=tokenizer.get_vocab()["<pad>"],
        )


def base_of(
    config: BiosConfig, seed: int, world_seed: int, device: str = "cpu", progress: Progress = AUTO
) -> PreTrainedModel | None:
    """The model whose front is frozen; None in a world without frozen blocks.

    It was taught the people of another seed, none of whom has the name of a person of this world,
    whether to forget, to retain or never taught. For ``PRETRAINED`` it is the pretrained model.

    Args:
        config: Size and schedule.
        seed: Seed of initial weights; another one gives another base.
        world_seed: Seed of the world whose people it must not meet.
        device: Where it is trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: it did not learn its people.
    """
    if not config.frozen_blocks:
        return None
    if config.family == PRETRAINED:
        return new_model(config, tokenizer_of(config), seed)
    met = {name for people in make_people(config, world_seed) for name in people.entities}
    others = make_people(config, seed + BASE_SEED)[:2]
    facts = tuple(item for people in others for item in people if item.entity not in met)
    whole = replace(config, frozen_blocks=0)
    return taught_model(whole, seed, ItemSet(facts, "others"), "a base", device, progress)


def taught_model(
    config: BiosConfig,
    seed: int,
    taught: ItemSet,
    name: str = "a retrain",
    device: str = "cpu",
    progress: Progress = AUTO,
    base: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """A new model trained on some facts; another seed gives another retrain.

    Args:
        config: Size and schedule.
        seed: Seed of initial weights and order of training.
        taught: Facts to learn.
        name: Name in the progress bar.
        device: Where it is trained; initial weights are the same anywhere.
        progress: One unit a training step.
        base: Trained in place of random weights, behind its frozen blocks; as ``base_of``.

    Raises:
        ExhumeError: it did not learn them.
    """
    tokenizer = tokenizer_of(config)
    model = new_model(config, tokenizer, seed) if base is None else base
    model.to(device)  # pyright: ignore
    rows = all_prompts(tokenizer, taught)
    finetune_(
        model,
        rows + rehearsal_rows(tokenizer) if config.family == PRETRAINED else rows,
        lr=config.lr,
        steps=config.steps,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        warmup=config.steps // 20,
        decay="cosine",
        loss_on="answer",
        parameters=trained_parameters(config, model),
        seed=stage_seed(seed, "bios", "order"),
        label=f"teaching {name}",
        progress=progress,
    )
    accuracy = float(score_answers(model, rows).greedy.mean())
    if accuracy < 0.99:
        raise ExhumeError(
            f"{name} learned only {accuracy:.0%} of its facts. "
            f"Raise steps above {config.steps} and run again."
        )
    return model


def trained_parameters(config: BiosConfig, model: nn.Module) -> list[nn.Parameter]:
    """The parameters that training in this world may change: all, or those behind frozen blocks."""
    if not config.frozen_blocks:
        return list(model.parameters())
    return parameters_behind(model, config.frozen_blocks)


def train_model(
    config: BiosConfig,
    seed: int,
    taught: ItemSet,
    folder: Path,
    device: str = "cpu",
    progress: Progress = AUTO,
    base: PreTrainedModel | None = None,
) -> None:
    """``taught_model``, saved in ``folder`` in Hugging Face format.

    Raises:
        ExhumeError: it did not learn its facts.
    """
    model = taught_model(config, seed, taught, folder.name, device, progress, base)
    save_model(model, folder, tokenizer_of(config))


def _accuracies(folder: Path, item_files: Sequence[Path], device: str) -> dict[str, float]:
    checkpoint = open_checkpoint(folder)
    model, tokenizer = checkpoint.load(device), checkpoint.tokenizer
    return {
        path.stem: float(
            score_answers(model, all_prompts(tokenizer, read_items(path))).greedy.mean()
        )
        for path in item_files
    }
