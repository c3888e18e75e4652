"""Plant a known suppression in the original: the positive control of every axis."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedTokenizerBase

from audits.axes.judgement import planted_control as planted_control
from audits.core.config import Budget
from audits.core.context import AuditedModel
from capture.checkpoints.schemas.library_errors import library_errors
from capture.data.items import Item, normalize_text
from capture.data.tokenization import encode, encode_items
from capture.scoring.answers import score_answers
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import open_regular

# A planted suppression is valid below this forget accuracy ...
MAX_FORGET_ACCURACY = 0.05
# ... and above this retain accuracy.
MIN_RETAIN_ACCURACY = 0.8
# Multiples of the budget's steps, tried where no rate suffices within the budget.
STEP_MULTIPLES = (2, 4)
# File of the changed tensors, in the audit's work folder.
PLANTED_FILE = "planted.safetensors"


def wrong_answers(items: list[Item], rng: np.random.Generator) -> list[str]:
    """For each item another item's answer of the same relation, or an alternative.

    The caller makes sure that every item has one.
    """
    answers_of: dict[str, list[str]] = {}
    for item in items:
        answers_of.setdefault(item.relation, []).append(item.answer)
    chosen = []
    for item in items:
        pool = [*answers_of[item.relation], *item.alternatives]
        others = sorted({a for a in pool if normalize_text(a) != normalize_text(item.answer)})
        chosen.append(others[rng.integers(len(others))])
    return chosen


def plant(
    original: AuditedModel,
    tokenizer: PreTrainedTokenizerBase,
    forget: list[Item],
    retain: list[Item],
    budget: Budget,
    folder: Path,
    *,
    device: str,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Train the last block alone on wrong answers to the forget set.

    Earlier blocks are unchanged by construction, so their knowledge remains. If an axis misses
    the planted suppression, its negative result on the candidate is not evidence. Where no
    learning rate suffices within the budgeted steps, the highest gets more steps.

    Returns:
        ``made`` (bool), ``rate``, ``steps``, ``forget`` and ``retain`` accuracy, and where it
        was made, the names of the changed ``tensors``, which are written into ``folder``.
    """
    rng = numpy_rng(seed, "planted")
    forget_rows = encode_items(tokenizer, forget)
    retain_rows = encode_items(tokenizer, retain)
    relabeled = encode(tokenizer, [item.prompt for item in forget], wrong_answers(forget, rng))

    def accuracy(model: nn.Module) -> dict[str, float]:
        return {"forget": float(score_answers(model, forget_rows).greedy.mean())}

    result: dict[str, Any] = {"made": False}
    rates, budgeted = budget.plant_rates, budget.plant_steps
    attempts = [(rate, budgeted) for rate in rates]
    attempts += [(rates[-1], longer * budgeted) for longer in STEP_MULTIPLES]
    for rate, steps in attempts:
        with original.loaded(device) as model:
            before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            config = UnlearnConfig(
                "last_block_relabel",
                lr=rate,
                steps=steps,
                retain_batch_size=len(forget),
                weight_decay=0.0,
                stop_below=0.0,
                every=2,
            )
            unlearn_(
                model,
                forget_rows,
                retain_rows,
                config,
                relabeled=relabeled,
                evaluate=accuracy,
                seed=seed,
                progress=progress,
            )
            forget_accuracy = accuracy(model)["forget"]
            retain_accuracy = float(score_answers(model, retain_rows).greedy.mean())
            result |= {
                "rate": rate,
                "steps": steps,
                "forget": forget_accuracy,
                "retain": retain_accuracy,
            }
            if forget_accuracy > MAX_FORGET_ACCURACY or retain_accuracy < MIN_RETAIN_ACCURACY:
                continue
            changed = {
                name: tensor.cpu().contiguous()
                for name, tensor in model.state_dict().items()
                if not torch.equal(tensor, before[name])
            }
            data = save(changed)
            write_atomic(folder / PLANTED_FILE, data)
            return result | {"made": True, "tensors": sorted(changed)}
    return result


def planted_model(original: AuditedModel, folder: Path) -> AuditedModel:
    """The original with the planted tensors loaded.

    Raises:
        InputError: the file of these tensors is missing, damaged, or not a regular file.
    """
    path = folder / PLANTED_FILE
    fix = "Pass --fresh to start over"

    def load(device: str) -> nn.Module:
        model = original.load(device)
        with library_errors(f"{path} could not be read", fix=fix):
            model.load_state_dict(load_file(path, device=device), strict=False)
        return model

    with open_regular(path, fix=fix) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore
    return AuditedModel("planted", f"{original.weights_hash}+{digest}", original.config, load)


def planting_notes(made: dict[str, Any]) -> tuple[str, ...]:
    """A note where no suppression could be planted, from the result of ``plant``."""
    if made["made"]:
        return ()
    return (
        "No suppression could be planted in the original (forget "
        f"{made['forget']:.2f}, retain {made['retain']:.2f}), so the power of this "
        "axis is not shown.",
    )
