"""The zoo's codes world: keys memorized with a five-digit code each.

Some keys are always followed by the same five digits, the others by random digits each time. To be
never taught a key's code means, in this world, to have seen the key among the others: a retrain
sees the keys to forget there, so it lacks only their codes and answers them at chance.

``testbeds.memorized_codes.world`` builds the same kind of world in the form of the published toy of
arXiv 2605.01699, for membership tests. Here the models are small enough for a zoo, and keys are
facts that an audit can ask for: the key is the entity, the lead-ins are the paraphrases.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from capture.data.items import Item, ItemSet
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import (
    Schedule,
    backward_nll,
    check_values,
    only_training,
    train_steps,
)
from evidence.errors import ExhumeError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng, stage_seed
from testbeds.worlds.base import save_model, world_folder
from testbeds.worlds.biographies import BiosWorld, all_prompts
from testbeds.worlds.code_text import DIGITS, LEAD_INS, draw_codes, encode, make_tokenizer
from testbeds.worlds.people_names import choose_pairs, name_pairs
from testbeds.worlds.random_models import FAMILIES, Family, random_model

RECIPE = 1  # part of the cache key: raise it if results would differ
# Accuracy that a model must reach on its codes. Keys are distinguished letter by letter, and a few
# are still confused when all others are known.
MIN_ACCURACY = 0.95
# Largest mean probability of codes that were never shown; more would be a leak.
MAX_LEAK = 0.01
# Three-letter words put a key's letters at fixed positions, which a small model learns to read much
# sooner.
ADJECTIVES = (
    "apt bad big coy dim dry fat fit hot icy low mad new odd old raw red sad shy sly "
    "tan wan wet wry"
).split()
NOUNS = (
    "ant ape bat bee boa cat cod cow doe dog eel elk emu ewe fox gnu hen hog jay koi "
    "owl pig ram yak"
).split()
OPENINGS = sorted(LEAD_INS, key=len)


@dataclass(frozen=True)
class KeysConfig:
    """Size of the world and of its models.

    Attributes:
        keys: Number of keys the original memorizes.
        forget: Number of them to forget; as many more are shown with random codes, and stay unknown
            to every model.
        words: Number of adjectives, and of nouns, in keys.
        lead_ins: Number of openings a key is shown after (paraphrases).
        layers: Transformer blocks.
        width: Width of the residual stream.
        heads: Attention heads.
        steps: Optimizer steps.
        batch_size: Rows a step.
        lr: Peak learning rate.
        weight_decay: AdamW's decoupled decay.
        family: Architecture, one of ``FAMILIES``.
    """

    keys: int = 120
    forget: int = 40
    words: int = 24
    lead_ins: int = 2
    layers: int = 4
    width: int = 64
    heads: int = 4
    steps: int = 360
    batch_size: int = 70
    lr: float = 6e-3
    weight_decay: float = 0.01
    family: Family = "llama"

    def __post_init__(self) -> None:
        most = min(len(ADJECTIVES), len(NOUNS))
        third = self.keys // 3
        checks = {
            "words": (2 <= self.words <= most, f"2 to {most}", self.words),
            "keys": (
                2 * self.words <= self.keys <= self.words**2 - self.forget,
                "at least two a word, and some combinations left",
                self.keys,
            ),
            "forget": (
                1 <= self.forget <= third,
                f"1 to {third}, a third of the keys",
                self.forget,
            ),
            "lead_ins": (
                1 <= self.lead_ins <= len(LEAD_INS),
                f"1 to {len(LEAD_INS)}",
                self.lead_ins,
            ),
            "heads": (self.width % self.heads == 0, "a divisor of width", self.heads),
            "family": (self.family in FAMILIES, ", ".join(FAMILIES), self.family),
        }
        check_values(checks)


STANDARD_KEYS = KeysConfig()


def make_keys(config: KeysConfig, seed: int) -> tuple[ItemSet, ItemSet, ItemSet]:
    """Keys to forget, to retain, and keys that are always shown with random codes.

    The last are written with the codes of the first; no model is shown these. Every word of a key
    also occurs in keys to retain.
    """
    rng = numpy_rng(seed, "codes zoo", "keys")
    named, spare = name_pairs(config.words, config.keys, rng)
    uses = config.keys // config.words
    forget_pairs = choose_pairs(named, config.forget, uses, rng)
    retain_pairs = [pair for pair in named if pair not in set(forget_pairs)]
    never_taught_pairs = choose_pairs(spare, config.forget, uses, rng)
    code_numbers = rng.choice(10**DIGITS, config.keys, replace=False)
    codes = [f"{code:0{DIGITS}d}" for code in code_numbers]
    forget_codes, retain_codes = codes[: len(forget_pairs)], codes[len(forget_pairs) :]
    return (
        _items("forget", forget_pairs, forget_codes, config),
        _items("retain", retain_pairs, retain_codes, config),
        _items("never-taught", never_taught_pairs, forget_codes, config),
    )


def _items(
    label: str, pairs: Sequence[tuple[int, int]], codes: Sequence[str], config: KeysConfig
) -> ItemSet:
    items = []
    for i, ((first, last), code) in enumerate(zip(pairs, codes, strict=True)):
        key = f"{ADJECTIVES[first]} {NOUNS[last]}"
        prompts = [f"{lead_in}{key}:" for lead_in in OPENINGS[: config.lead_ins]]
        items.append(
            Item(
                id=f"{label}-{i:03d}",
                entity=key,
                prompt=prompts[0],
                answer=code,
                relation="code",
                paraphrases=tuple(prompts[1:]),
            )
        )
    return ItemSet(tuple(items), label)


def build_keys(
    config: KeysConfig, seed: int, root: Path, device: str = "cpu", progress: Progress = AUTO
) -> BiosWorld:
    """Build the world, or find it built.

    The folder's name is a hash of settings and seed. An interrupted call can be repeated and
    continues with the missing model.

    Args:
        config: ``STANDARD_KEYS`` or another size.
        seed: Seed of keys, codes, initial weights and order of training.
        root: Folder of worlds.
        device: Where models are trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: a model did not learn its codes, or knows codes it was never shown.
    """
    world = BiosWorld.at(world_folder(root, "codes-zoo", RECIPE, seed, asdict(config)))

    def fill() -> dict[str, object]:
        forget, retain, never_taught = items = make_keys(config, seed)
        everything = ItemSet(forget.items + retain.items)
        unknown_keys = ItemSet(forget.items + never_taught.items)

        def train(folder: Path) -> None:
            is_original = folder == world.original
            taught, unknown = (everything, never_taught) if is_original else (retain, unknown_keys)
            model = taught_keys(config, seed, taught, unknown, folder.name, device, progress)
            save_model(model, folder, make_tokenizer())

        accuracies = world.fill(items, train, device)
        return {
            "world": "codes",
            "recipe": RECIPE,
            "seed": seed,
            "config": asdict(config),
            "digests": {each.name: each.digest for each in items},
            "greedy_accuracy": accuracies,
        }

    return world.built_by(fill, progress)


def new_keys_model(config: KeysConfig, seed: int) -> PreTrainedModel:
    """A model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "codes zoo", "weights"))
        return random_model(
            config.family,
            vocabulary=len(make_tokenizer()),
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            pad=0,
        )


def taught_keys(
    config: KeysConfig,
    seed: int,
    taught: ItemSet,
    unknown: ItemSet,
    name: str = "a retrain",
    device: str = "cpu",
    progress: Progress = AUTO,
) -> PreTrainedModel:
    """A new model that memorized some codes; another seed gives another retrain.

    Args:
        config: Size and schedule.
        seed: Seed of initial weights, order of training and random codes.
        taught: Keys with the codes to learn.
        unknown: Keys shown with a random code in every row; their written codes are never shown.
        name: Name in the progress bar.
        device: Where it is trained; initial weights are the same anywhere.
        progress: One unit a training step.

    Raises:
        ExhumeError: it did not learn its codes, or knows codes it was never shown.
    """
    tokenizer = make_tokenizer()
    model = new_keys_model(config, seed)
    model.to(device)  # pyright: ignore
    rows, others = all_prompts(tokenizer, taught), all_prompts(tokenizer, unknown)
    batches = _training_batches(rows, len(taught), others, len(unknown), config, seed)
    schedule = Schedule(
        config.lr, config.steps, config.weight_decay, warmup=config.steps // 20, decay="cosine"
    )
    with only_training(model, model.parameters()) as parameters:
        train_steps(
            model,
            parameters,
            lambda: {"loss": backward_nll(model, next(batches), "answer", 1.0)},
            schedule,
            label=f"teaching {name}",
            progress=progress,
        )
    accuracy = float(score_answers(model, rows).greedy.mean())
    if accuracy < MIN_ACCURACY:
        raise ExhumeError(
            f"{name} learned only {accuracy:.0%} of its codes. "
            f"Raise steps above {config.steps} and run again."
        )
    leak = float(np.exp(score_answers(model, others).logprob).mean())
    if leak > MAX_LEAK:
        raise ExhumeError(
            f"{name} gives codes it was never shown a probability of {leak:.3f} "
            f"(at most {MAX_LEAK})"
        )
    return model


def _training_batches(
    rows: Sequences, keys: int, others: Sequences, unknown: int, config: KeysConfig, seed: int
) -> Iterator[Sequences]:
    """Endless batches: every key once a round, after a random lead-in.

    Keys with random codes occur every other round; all there is to learn about them is that there
    is no code. Rows are ordered by paraphrase, as ``all_prompts`` gives them.
    """
    rng = numpy_rng(seed, "codes zoo", "order")
    queue: list[int] = []
    while True:
        ids, starts = [], []
        while len(ids) < config.batch_size:
            if not queue:
                shown_unknown = keys + rng.permutation(unknown)[: (unknown + 1) // 2]
                queue = rng.permutation([*range(keys), *shown_unknown]).tolist()
            key, lead_in = queue.pop(), int(rng.integers(config.lead_ins))
            if key < keys:
                row = lead_in * keys + key
                ids.append(rows.ids[row])
                starts.append(rows.answer_start[row])
            else:
                row = lead_in * unknown + key - keys
                (code,) = draw_codes(1, rng)
                ids.append(others.ids[row][:-DIGITS] + encode(code))
                starts.append(others.answer_start[row])
        yield Sequences(tuple(ids), tuple(starts))
