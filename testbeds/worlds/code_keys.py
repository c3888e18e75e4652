"""The codes world of the zoo: keys that were memorised with a five-digit code each.

After some keys the same five digits always follow, after the others they are drawn
anew every time the key is shown. To have never been taught a key's code is, in this
world, to have seen the key among the others: a retrain sees the keys to forget there,
so nothing but their codes is missing in it, and nothing but chance is right for them.

``testbeds.memorized_codes.world`` makes the same kind of world as the published toy of
arXiv 2605.01699 has it, for membership; here the models are small enough for a zoo of
them, and keys are facts that an audit can ask for: the key is the entity, the lead-ins
are the wordings.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.schemas.library_errors import quiet_transformers
from capture.data.items import ItemSet, read_items
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import (
    Schedule,
    backward_nll,
    only_training,
    train_steps,
)
from evidence.errors import ExhumeError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng, stage_seed
from evidence.storage.files import atomic_folder, write_atomic
from evidence.storage.locks import creation_lock
from testbeds.worlds.biographies import BiosWorld, all_prompts
from testbeds.worlds.code_key_items import KeysConfig, make_keys
from testbeds.worlds.code_text import DIGITS, draw_codes, encode, make_tokenizer
from testbeds.worlds.random_models import random_model

RECIPE = 1  # part of the cache's key: raise it when the result would differ
# Least share of its codes that a model must have learned: keys are told apart letter by
# letter, and a few are still mistaken for others when all the rest are known.
MIN_ACCURACY = 0.95
# Highest mean probability of a code that was never shown: knowing one would be a leak.
MAX_LEAK = 0.01


def build_keys(
    config: KeysConfig,
    seed: int,
    root: Path,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> BiosWorld:
    """Make the world, or find it made.

    The folder's name is a hash of settings and seed. Interrupted, the same call goes
    on with the model that is missing.

    Args:
        config: ``STANDARD_KEYS`` or another size.
        seed: Fixes keys, codes, starting weights and order of training.
        root: Where worlds are kept.
        device: Where models are trained.
        progress: Where progress is shown.

    Raises:
        ExhumeError: a model did not learn its codes, or knows some it was never shown.
    """
    key = json.dumps([RECIPE, seed, asdict(config)], sort_keys=True)
    place = root / f"codes-zoo-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    world = BiosWorld.at(place)
    made = place / "manifest.json"
    if not made.is_file():
        with creation_lock(place, progress):
            if not made.is_file():
                _fill(world, config, seed, device, progress)
    return world


def _fill(
    world: BiosWorld, config: KeysConfig, seed: int, device: str, progress: Progress
) -> None:
    """Make what is missing of a world, and at last the manifest."""
    forget, retain, never = make_keys(config, seed)
    forget.to_jsonl(world.forget)
    retain.to_jsonl(world.retain)
    never.to_jsonl(world.never_taught)
    everything = ItemSet(forget.items + retain.items)
    gone = ItemSet(forget.items + never.items)
    for folder, taught, unknown in (
        (world.original, everything, never),
        (world.twin, retain, gone),
    ):
        if not folder.is_dir():
            model = taught_keys(
                config, seed, taught, unknown, folder.name, device, progress
            )
            with atomic_folder(folder) as scratch, quiet_transformers():
                model.save_pretrained(scratch)
                make_tokenizer().save_pretrained(scratch)
    manifest = {
        "world": "codes",
        "recipe": RECIPE,
        "seed": seed,
        "config": asdict(config),
        "digests": {each.name: each.digest for each in (forget, retain, never)},
        "greedy_accuracy": {
            folder.name: _accuracies(folder, world, device)
            for folder in (world.original, world.twin)
        },
    }
    text = json.dumps(manifest, indent=2) + "\n"
    write_atomic(world.root / "manifest.json", text)


def new_keys_model(config: KeysConfig, seed: int) -> PreTrainedModel:
    """A model that was taught nothing."""
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
    progress: Progress = SILENT,
) -> PreTrainedModel:
    """A new model that memorised some codes; another seed gives another retrain.

    Args:
        config: Size and schedule.
        seed: Fixes starting weights, order of training and the codes drawn.
        taught: Keys with the codes it learns.
        unknown: Keys shown with codes that are drawn anew for every row; the codes
            written to them are never shown.
        name: What the progress bar calls it.
        device: Where it is trained; its starting weights are the same anywhere.
        progress: Where progress is shown.

    Raises:
        ExhumeError: it did not learn its codes, or knows some it was never shown.
    """
    tokenizer = make_tokenizer()
    model = new_keys_model(config, seed)
    model.to(device)  # pyright: ignore
    rows, others = all_prompts(tokenizer, taught), all_prompts(tokenizer, unknown)
    lessons = _training_batches(rows, len(taught), others, len(unknown), config, seed)
    schedule = Schedule(
        config.lr,
        config.steps,
        config.weight_decay,
        warmup=config.steps // 20,
        decay="cosine",
    )
    with only_training(model, model.parameters()) as parameters:
        train_steps(
            model,
            parameters,
            lambda: {"loss": backward_nll(model, next(lessons), "answer", 1.0)},
            schedule,
            label=f"teaching {name}",
            progress=progress,
        )
    right = float(score_answers(model, rows).greedy.mean())
    if right < MIN_ACCURACY:
        raise ExhumeError(
            f"{name} learned only {right:.0%} of its codes. "
            f"Raise steps above {config.steps} and run again."
        )
    leaked = float(np.exp(score_answers(model, others).logprob).mean())
    if leaked > MAX_LEAK:
        raise ExhumeError(
            f"{name} gives codes it was never shown a probability of {leaked:.3f} "
            f"(at most {MAX_LEAK})"
        )
    return model


def _training_batches(
    rows: Sequences,
    keys: int,
    others: Sequences,
    unknown: int,
    config: KeysConfig,
    seed: int,
) -> Iterator[Sequences]:
    """Endless batches: every key once a round, after a lead-in drawn for it.

    Keys whose codes are drawn come every other round: all there is to learn of them is
    that there is nothing to learn. Rows lie wording by wording, as ``all_prompts``
    gives them.
    """
    rng = numpy_rng(seed, "codes zoo", "order")
    waiting: list[int] = []
    while True:
        ids, starts = [], []
        while len(ids) < config.batch_size:
            if not waiting:
                drawn = keys + rng.permutation(unknown)[: (unknown + 1) // 2]
                waiting = rng.permutation([*range(keys), *drawn]).tolist()
            key, lead = waiting.pop(), int(rng.integers(config.lead_ins))
            if key < keys:
                row = lead * keys + key
                ids.append(rows.ids[row])
                starts.append(rows.answer_start[row])
            else:
                row = lead * unknown + key - keys
                (code,) = draw_codes(1, rng)
                ids.append(others.ids[row][:-DIGITS] + encode(code))
                starts.append(others.answer_start[row])
        yield Sequences(tuple(ids), tuple(starts))


def _accuracies(folder: Path, world: BiosWorld, device: str) -> dict[str, float]:
    model, tokenizer = open_checkpoint(folder).load(device), make_tokenizer()
    return {
        path.stem: float(
            score_answers(model, all_prompts(tokenizer, read_items(path))).greedy.mean()
        )
        for path in (world.forget, world.retain, world.never_taught)
    }
