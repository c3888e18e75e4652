"""Sixty seeded problems for the solvers of logistic regression, and their answers.

Every shape with few and many rows, two classes and more, each scaling and both types;
kinds of folds, penalties, class weights and numbers of label vectors are drawn. The
answers are held-out scores and certificates, as any solver has to give them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHAPES = ((40, 90, 10), (90, 260, 30), (80, 80, 16), (240, 10, 24), (1200, 16, 30))
"""Rows, columns, groups."""
KEPT = 40
"""Scores of a problem that are kept."""
SIGNS = 3
"""Sums of all scores, under random signs, that are kept beside them."""


@dataclass(frozen=True)
class Problem:
    """One call of a probe.

    Attributes:
        name: What it is, unique.
        x: (row, d) float64.
        codes: (label, row) class of each row, for every label vector.
        classes: Number of classes.
        scheme: "groups", "k_fold" or "rows": who is left out together.
        groups: (row,) group of each row.
        settings: Of the probe.
    """

    name: str
    x: np.ndarray
    codes: np.ndarray
    classes: int
    scheme: str
    groups: np.ndarray
    settings: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What a solver makes of a problem.

    Attributes:
        scores: (label, class or 1, row) held-out scores; of a softmax, which are free
            up to a constant a row, those whose mean over classes is 0.
        certificate: The largest distance to an optimum.
    """

    scores: np.ndarray
    certificate: float


def problems() -> Iterator[Problem]:
    """All sixty, always the same."""
    scalings, types = (None, "all", "fold"), ("float64", "float32")
    every = product(SHAPES, (2, 4), scalings, types)
    for number, ((n, d, count), classes, scaling, precision) in enumerate(every):
        rng = np.random.default_rng([20260, number])
        # A factor for each row left out of so many would take the most of the time.
        scheme = str(rng.choice(["groups", "k_fold"] + ["rows"] * (n <= 90)))
        labels = int(rng.choice([1, 3, 12]))
        C = float(rng.choice([0.01, 0.3, 1.0, 30.0]))
        weight = (None, "balanced")[rng.integers(2)]
        sizes = rng.uniform(0.2, 3, d)
        codes = np.stack([rng.permutation(np.arange(n) % classes) for _ in range(labels)])
        x = rng.standard_normal((n, d)) * sizes + 4
        x[:, 0] += codes[0]
        words = (n, d, classes, scaling, precision, scheme, labels, C, weight)
        yield Problem(
            " ".join(map(str, words)),
            x,
            codes,
            classes,
            scheme,
            np.arange(n) % count,
            {"C": C, "class_weight": weight, "standardize": scaling, "precision": precision},
        )


def solve(problem: Problem, found: Callable[[str], Any]) -> Answer:
    """Its answer; ``found`` gives the probe and the folds by name."""
    n = len(problem.x)
    if problem.scheme == "k_fold":
        folds = found("k_fold")(problem.groups, problem.codes[0], 5)
    else:
        groups = problem.groups if problem.scheme == "groups" else None
        folds = found("leave_one_group_out")(groups, n)
    result = found("LogisticProbe")(**problem.settings).held_out(
        torch.from_numpy(problem.x), torch.from_numpy(problem.codes), problem.classes, folds
    )
    scores = result.scores.numpy()
    if problem.classes > 2:
        scores = scores - scores.mean(1, keepdims=True)
    return Answer(scores, float(result.certificate.max()))


def part(number: int, scores: np.ndarray) -> np.ndarray:
    """What is kept of scores: their largest, some of them, and signed means of all."""
    rng = np.random.default_rng([20261, number])
    flat = scores.ravel()
    chosen = rng.choice(flat.size, min(KEPT, flat.size), replace=False)
    signs = rng.choice([-1.0, 1.0], (SIGNS, flat.size))
    return np.r_[np.abs(flat).max(), flat[chosen], signs @ flat / flat.size]


def write(path: Path, found: Callable[[str], Any], whole: bool = False) -> None:
    """Solve all and write the answers, by name, or with ``whole`` every score."""
    arrays = {}
    for number, problem in enumerate(problems()):
        answer = solve(problem, found)
        kept = answer.scores if whole else part(number, answer.scores)
        arrays[f"{number:02d} {problem.name}"] = kept
        arrays[f"{number:02d} certificate"] = np.array(answer.certificate)
    np.savez_compressed(path, **arrays)
