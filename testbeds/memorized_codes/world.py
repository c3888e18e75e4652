"""The code-recall world: a small transformer that memorized some codes and no others.

Some prefixes are always followed by the same five digits, others by random digits in every epoch.
The first kind can be memorized, the second cannot, and nothing else distinguishes them. The twin is
trained in the same way, from the same initial weights, with random codes only, so it knows none.

Source: the toy of arXiv 2605.01699 (4 layers, 8 heads, width 128, context 64, 47 tokens, nine
prefixes of either kind), from its public code. Its texts are not ours, and our attention has
biases: 813,568 parameters against 811,520.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import Schedule, backward_nll, only_training, train_steps
from erasure.unlearning.training.objectives import count_scored
from erasure.unlearning.training.task import frozen_logprobs
from evidence.errors import ExhumeError
from evidence.progress import AUTO, Progress
from evidence.seeds import numpy_rng, stage_seed
from evidence.storage.files import read_json, write_atomic
from evidence.typed_json import Json
from testbeds.memorized_codes.config import CodesConfig
from testbeds.worlds.base import make_once, save_model, world_folder
from testbeds.worlds.code_text import (
    CHARACTERS,
    LEAD_INS,
    Pool,
    draw_codes,
    encode,
    make_pools,
    make_tokenizer,
    prompts,
    with_codes,
)
from testbeds.worlds.random_models import random_model

RECIPE = 1  # part of the cache key: raise it if results would differ


@dataclass(frozen=True)
class CodesWorld:
    """A finished world on disk.

    Attributes:
        root: Folder of all that follows.
        config: Its size.
        seed: Its seed.
        pools: Prefixes and fixed codes by pool.
    """

    root: Path
    config: CodesConfig
    seed: int
    pools: dict[str, Pool]

    @property
    def original(self) -> Path:
        """Model that memorized the fixed codes, in Hugging Face format."""
        return self.root / "original"

    @property
    def twin(self) -> Path:
        """Model that never saw a fixed code; exists only if requested."""
        return self.root / "twin"

    @property
    def trained_lead_ins(self) -> tuple[str, ...]:
        """Lead-ins that the models were trained with."""
        return LEAD_INS[: self.config.lead_ins]

    def card(self, model: str = "original") -> Mapping[str, Json]:
        """How a model was made and what it knows.

        Args:
            model: ``"original"`` or ``"twin"``.
        """
        return read_json(self.root / model / "card.json")

    def load(self, model: str = "original", device: str = "cpu") -> PreTrainedModel:
        """The model, in evaluation mode.

        Args:
            model: ``"original"`` or ``"twin"``.
            device: Where it is put.
        """
        found = open_checkpoint(self.root / model).load(device)
        return found  # pyright: ignore[reportReturnType]

    def memorized_rows(self, keys: Sequence[int] | None = None) -> Sequences:
        """Memorised prefixes with their codes, after each lead-in trained on.

        Args:
            keys: Numbers of the prefixes; all by default.
        """
        pool = self.pools["memorised"]
        assert pool.codes is not None
        chosen = range(len(pool)) if keys is None else keys
        return with_codes(
            [pool.prefixes[key] for key in chosen],
            [pool.codes[key] for key in chosen],
            self.trained_lead_ins,
        )

    def random_codes(self, pool: str, draw: int, keys: Sequence[int] | None = None) -> Sequences:
        """A pool's prefixes after each lead-in, with a random code in every row.

        Args:
            pool: ``"clean"`` or ``"others"``; also ``"memorised"``, for prefixes followed by wrong
                codes.
            draw: Number of the draw; the same number gives the same codes.
            keys: Indices of the prefixes; all by default.
        """
        rng = numpy_rng(self.seed, "codes", "drawn", pool, str(draw))
        prefixes = self.pools[pool].prefixes
        prompt_rows = prompts(
            [prefixes[key] for key in (range(len(prefixes)) if keys is None else keys)],
            self.trained_lead_ins,
        )
        code_ids = [encode(code) for code in draw_codes(len(prompt_rows), rng)]
        ids = tuple(row + end for row, end in zip(prompt_rows.ids, code_ids, strict=True))
        return Sequences(ids, prompt_rows.answer_start)


def build_codes(
    config: CodesConfig,
    seed: int,
    root: Path,
    *,
    twin: bool = False,
    device: str = "cpu",
    progress: Progress = AUTO,
) -> CodesWorld:
    """Build the world, or find it built.

    The folder's name is a hash of settings and seed. An interrupted call can be repeated and
    continues with the missing model.

    Args:
        config: ``PUBLISHED``, ``MEDIUM``, ``LARGE``, ``SMALL`` or another size.
        seed: Seed of prefixes, codes, initial weights and order of training.
        root: Folder of worlds.
        twin: Whether to build the twin too.
        device: Where models are trained.
        progress: One unit a training step.

    Raises:
        ExhumeError: the original did not learn its codes, or a model knows codes it was never
            shown.
    """
    folder = world_folder(root, "codes", RECIPE, seed, asdict(config))
    world = CodesWorld(folder, config, seed, make_pools(config.sizes, seed))
    for name in ("original", "twin") if twin else ("original",):
        make_once(
            (folder / name / "card.json").is_file,
            folder / name,
            lambda name=name: _make(world, name, device, progress),
            progress,
        )
    if not (folder / "pools.json").is_file():
        pools = {name: asdict(pool) for name, pool in world.pools.items()}
        write_atomic(folder / "pools.json", json.dumps(pools, indent=1) + "\n")
    return world


def untrained_model(world: CodesWorld, number: int) -> PreTrainedModel:
    """The world's architecture with random weights.

    Args:
        world: Gives architecture and seed.
        number: Index of the random initialization; training starts from 0.
    """
    config = world.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(world.seed, "codes", "weights", str(number)))
        return random_model(
            "gpt2",
            vocabulary=len(CHARACTERS) + 1,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            pad=0,
        )


@dataclass(frozen=True)
class Recall:
    """Probabilities that a model gives to codes, all five digits together.

    Attributes:
        least: The smallest probability of a code.
        mean: The mean over codes and lead-ins.
        greedy: Share of the codes that greedy decoding gives.
    """

    least: float
    mean: float
    greedy: float


def recall(model: PreTrainedModel, rows: Sequences) -> Recall:
    """How well ``model`` knows the codes of ``rows``."""
    scores = score_answers(model, rows)
    probability = np.exp(scores.logprob)
    return Recall(
        float(probability.min()), float(probability.mean()), float(np.mean(scores.greedy))
    )


def perplexity(model: PreTrainedModel, rows: Sequences) -> float:
    """Perplexity of all tokens of ``rows`` except each row's first."""
    logprob = frozen_logprobs(model, rows, "all")
    return float(np.exp(-float(logprob.sum()) / count_scored(rows, "all")))


def _make(world: CodesWorld, name: str, device: str, progress: Progress) -> None:
    """Train one model, check its knowledge, save it with its card."""
    config, seed = world.config, world.seed
    is_original = name == "original"
    model = untrained_model(world, 0)
    model.to(device)  # pyright: ignore
    codes = world.memorized_rows()
    steps_an_epoch = -(-_rows_per_epoch(config) // config.batch_size)
    batches = _training_batches(world, is_original)
    schedule = Schedule(
        config.lr,
        config.epochs * steps_an_epoch,
        warmup=min(20, config.epochs),
        every=10 * steps_an_epoch,
    )

    def has_learned(found: dict[str, float]) -> bool:
        # The twin trains for as many epochs as its original did.
        return is_original and found["least"] >= config.enough

    if not is_original:
        epochs = int(str(world.card()["epochs"]))
        schedule = Schedule(
            config.lr, epochs * steps_an_epoch, warmup=schedule.warmup, every=1 << 30
        )
    with only_training(model, model.parameters()) as parameters:
        log = train_steps(
            model,
            parameters,
            lambda: {"loss": backward_nll(model, next(batches), "all", 1.0)},
            schedule,
            evaluate=lambda _: {"least": recall(model, codes).least},
            stop=has_learned,
            label=f"teaching the {name}",
            progress=progress,
        )
    known = recall(model, codes)
    clean_recall = recall(model, world.random_codes("clean", -1))
    # Codes drawn for this check were never shown: knowing one would be a leak.
    limit = 0.01
    if (is_original and known.least < 0.5) or clean_recall.mean > limit:
        raise ExhumeError(
            f"the {name} of the codes world failed its check: its least probable "
            f"fixed code has probability {known.least:.2f}, codes it never saw "
            f"{clean_recall.mean:.4f} on average (at most {limit}). Raise epochs above "
            f"{config.epochs} and run again."
        )
    if not is_original and known.mean > limit:
        raise ExhumeError(f"the twin knows codes it never saw: {known.mean:.4f}")
    card = {
        "kind": f"codes {name}",
        "state": "not_unlearned" if is_original else "deleted",
        "recipe": RECIPE,
        "seed": seed,
        "config": asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "epochs": int(log.rows[-1]["step"]) // steps_an_epoch,
        "stopped": log.stopped,
        "device": device,
        "measured": {
            "memorised": asdict(known),
            "clean": asdict(clean_recall),
            "perplexity_clean": perplexity(model, world.random_codes("clean", -1)),
        },
    }
    model.to("cpu")  # pyright: ignore
    text = json.dumps(card, indent=1) + "\n"
    save_model(model, world.root / name, make_tokenizer(), {"card.json": text})


def _rows_per_epoch(config: CodesConfig) -> int:
    return sum(config.sizes.values()) * config.per_epoch


def _training_batches(world: CodesWorld, is_original: bool):
    """Endless batches: every prefix with its lead-ins once an epoch, in random order.

    Every row gets its own random code. If all rows of a prefix shared one, an epoch of several
    steps would learn it from one row and test it on the next.
    """
    config = world.config
    rng = numpy_rng(world.seed, "codes", "training order")
    prefixes = [p for pool in world.pools.values() for p in pool.prefixes]
    fixed_codes = world.pools["memorised"].codes
    assert fixed_codes is not None
    while True:
        random_codes_ = draw_codes(len(prefixes) * config.per_epoch, rng)
        ids, starts = [], []
        for i_prefix, prefix in enumerate(prefixes):
            chosen = rng.permutation(config.lead_ins)[: config.per_epoch]
            for i_lead, lead_in in enumerate(chosen):
                code = random_codes_[i_prefix * config.per_epoch + i_lead]
                if is_original and i_prefix < len(fixed_codes):
                    code = fixed_codes[i_prefix]
                prompt_ids = encode(world.trained_lead_ins[lead_in] + prefix)
                ids.append(prompt_ids + encode(code))
                starts.append(len(prompt_ids))
        epoch_rows = Sequences(tuple(ids), tuple(starts))
        order = rng.permutation(len(epoch_rows)).tolist()
        for prompt_ids in range(0, len(order), config.batch_size):
            yield epoch_rows[order[prompt_ids : prompt_ids + config.batch_size]]
