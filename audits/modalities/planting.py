"""Plant a known suppression in the original: the positive control of every axis.

Only the last block and the output layer are trained on wrong answers, so the knowledge in earlier
blocks remains. If an axis misses the planted suppression, its negative result on the candidate is
not evidence.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from audits.core.config import Budget
from audits.core.context import AuditedModel
from audits.core.roles import Role
from capture.checkpoints.schemas.library_errors import library_errors
from capture.data.items import Item, normalize_text
from evidence.storage.files import write_atomic
from evidence.storage.regular_files import open_regular

# A planted suppression is valid below this forget accuracy ...
MAX_FORGET_ACCURACY = 0.05
# ... and above this retain accuracy.
MIN_RETAIN_ACCURACY = 0.8
MORE_STEPS = (2, 4)
"""Multiples of the budget's steps, tried where no rate suffices within the budget."""
# File of the changed tensors, in the audit's work folder.
PLANTED_FILE = "planted.safetensors"

Train = Callable[[nn.Module, float, int], tuple[float, float]]
"""Trains the last block of a model with a rate and a number of steps; returns its forget and
retain accuracy."""


@dataclass(frozen=True)
class Planted:
    """A planted suppression, or the last attempt at one.

    Attributes:
        made: Whether it is valid.
        rate: Learning rate.
        steps: Training steps.
        forget: Forget accuracy.
        retain: Retain accuracy.
        tensors: Names of the changed tensors, which are in ``PLANTED_FILE``.
    """

    made: bool
    rate: float = 0.0
    steps: int = 0
    forget: float = 1.0
    retain: float = 1.0
    tensors: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """A note of the axes where no suppression could be planted."""
        if self.made:
            return ()
        return (
            "No suppression could be planted in the original (forget "
            f"{self.forget:.2f}, retain {self.retain:.2f}), so the power of this "
            "axis is not shown.",
        )


def wrong_answers(items: list[Item], rng: np.random.Generator) -> list[str]:
    """For each item another item's answer of the same relation, or an alternative.

    The caller makes sure that every item has one.
    """
    answers_of: dict[str, set[str]] = {}
    spellings: dict[tuple[str, str], set[str]] = {}
    for item in items:
        answers_of.setdefault(item.relation, set()).add(item.answer)
        key = item.relation, normalize_text(item.answer)
        spellings.setdefault(key, set()).add(item.answer)
    # Sorted once: the pools of thousands of items differ by a few answers.
    pools = {relation: sorted(answers) for relation, answers in answers_of.items()}
    chosen = []
    for item in items:
        right, others = normalize_text(item.answer), pools[item.relation].copy()
        for answer in spellings[item.relation, right]:
            del others[bisect_left(others, answer)]
        for answer in {*item.alternatives} - answers_of[item.relation]:
            if normalize_text(answer) != right:
                insort(others, answer)
        chosen.append(others[rng.integers(len(others))])
    return chosen


def plant(
    original: AuditedModel,
    train: Train,
    budget: Budget,
    folder: Path,
    device: str,
    more_steps: Sequence[int] = (),
) -> Planted:
    """Train the original with growing learning rates until the suppression is valid.

    Args:
        train: Trains and scores a model.
        folder: Where the changed tensors are written.
        more_steps: Multiples of the budget's steps, tried with the highest rate where no rate
            suffices within the budget.
    """
    rates, budgeted = budget.plant_rates, budget.plant_steps
    attempts = [(rate, budgeted) for rate in rates]
    attempts += [(rates[-1], longer * budgeted) for longer in more_steps]
    planted = Planted(False)
    for rate, steps in attempts:
        with original.loaded(device) as model:
            before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
            forget, retain = train(model, rate, steps)
            planted = Planted(False, rate, steps, forget, retain)
            if forget > MAX_FORGET_ACCURACY or retain < MIN_RETAIN_ACCURACY:
                continue
            changed = {
                name: tensor.cpu().contiguous()
                for name, tensor in model.state_dict().items()
                if not torch.equal(tensor, before[name])
            }
            write_atomic(folder / PLANTED_FILE, save(changed))
            return replace(planted, made=True, tensors=tuple(sorted(changed)))
    return planted


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
    return AuditedModel(Role.PLANTED, f"{original.weights_hash}+{digest}", original.config, load)
