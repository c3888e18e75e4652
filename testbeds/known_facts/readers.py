"""What an embedding alone says of facts: readers fitted on the rows of other entities.

For pretrained facts there is no model that never knew. Instead, readers map the row of a name to
the row of its answer, fitted on entities that are not forgotten. How often the nearest answer of
the relation is the right one says how much of the facts the embedding holds.

Readers: the rows themselves (cosine between name and answer), a linear ridge, kernel ridge with a
Gaussian kernel and with the arc-cosine kernel (an infinitely wide network with one layer of
rectifiers; Cho and Saul 2009, NeurIPS 22), and the mean of the nearest neighbors. Penalty and
number of neighbors are those with the best leave-one-out accuracy on the fitted entities.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.network.structure import input_embedding
from evidence.errors import InputError
from evidence.seeds import numpy_rng

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # relative to the mean of the kernel's diagonal
NEIGHBORS = (1, 3, 5, 10)
PERMUTATIONS = 1000


def embedding_table(model: nn.Module) -> nn.Parameter:
    """(token, d) the input embedding.

    Raises:
        InputError: the model names none.
    """
    embedding = input_embedding(model)
    if embedding is None:
        raise InputError(
            "the model names no input embedding",
            expected="a causal language model",
            got=type(model).__name__,
        )
    return embedding.get_parameter("weight")


def text_rows(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    last: bool = False,
) -> np.ndarray:
    """(text, d) mean row of the input embedding over each text's tokens, or its last token's."""
    table = embedding_table(model).detach().double().numpy()
    rows = []
    for text in texts:
        ids = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        rows.append(table[ids[-1]] if last else table[ids].mean(0))
    return np.array(rows)


@dataclass(frozen=True)
class Reading:
    """Accuracy of the readers on the forgotten facts of a relation.

    Attributes:
        said: Top-1 accuracy among the relation's answers, by reader.
        best: The best reader's.
        chance: Mean accuracy of the best reader where the forgotten answers are permuted among
            the forgotten names.
        p_value: Share of permutations at least as good, the observed order among them.
        facts: Number of forgotten facts.
        answers: Number of answers to choose from.
        fitted: Number of other facts that the readers were fitted on.
    """

    said: dict[str, float]
    best: float
    chance: float
    p_value: float
    facts: int
    answers: int
    fitted: int


def read_answers(
    names: np.ndarray,
    answers: np.ndarray,
    codes: np.ndarray,
    other_names: np.ndarray,
    other_codes: np.ndarray,
    *,
    candidates: Sequence[int],
    seed: int = 0,
) -> Reading:
    """Fit readers on other entities and read the forgotten ones.

    Args:
        names: (fact, d) rows of the forgotten names.
        answers: (answer, d) rows of all answers.
        codes: (fact,) index of each forgotten fact's answer.
        other_names: (other fact, d) rows of other names.
        other_codes: (other fact,) index of each one's answer.
        candidates: Indices of the answers to choose from, every index of ``codes`` among them.
        seed: Seed of the permutations.
    """
    center = other_names.mean(0)
    x, test = unit_rows(other_names - center), unit_rows(names - center)
    middle = answers.mean(0)
    unit_answers = unit_rows(answers - middle)
    targets = unit_answers[other_codes]
    options = np.asarray(candidates)
    guesses = {"rows": _nearest(test, unit_answers, options)}
    for name, (train_kernel, test_kernel) in _kernels(x, test).items():
        best, fitted = -1.0, None
        for penalty in PENALTIES:
            alpha = penalty * float(np.diag(train_kernel).mean())
            inverse = np.linalg.inv(train_kernel + alpha * np.eye(len(x)))
            dual = inverse @ targets
            left_out = targets - dual / np.diag(inverse)[:, None]
            score = _accuracy(left_out, unit_answers, other_codes)
            if score > best:
                best, fitted = score, test_kernel @ dual
        assert fitted is not None
        guesses[name] = _nearest(fitted, unit_answers, options)
    near = x @ x.T
    np.fill_diagonal(near, -np.inf)
    order = np.argsort(-near, axis=1)
    scores = [
        _accuracy(targets[order[:, :k]].mean(1), unit_answers, other_codes) for k in NEIGHBORS
    ]
    k = NEIGHBORS[int(np.argmax(scores))]
    nearest = np.argsort(-(test @ x.T), axis=1)[:, :k]
    guesses["neighbors"] = _nearest(targets[nearest].mean(1), unit_answers, options)
    said = {name: float((guess == codes).mean()) for name, guess in guesses.items()}
    stacked = np.stack(list(guesses.values()))
    rng = numpy_rng(seed, "embedding readers")
    null = np.array(
        [(stacked == rng.permutation(codes)).mean(1).max() for _ in range(PERMUTATIONS)]
    )
    best_said = max(said.values())
    return Reading(
        said,
        best_said,
        float(null.mean()),
        float((1 + (null >= best_said).sum()) / (1 + PERMUTATIONS)),
        len(codes),
        len(options),
        len(other_codes),
    )


def _kernels(x: np.ndarray, test: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Kernel among the fitted rows and of test rows with them; all rows have norm 1."""
    distances = 2 - 2 * (x @ x.T)
    width = float(np.median(distances[~np.eye(len(x), dtype=bool)]))
    return {
        "ridge": (x @ x.T, test @ x.T),
        "rbf": (np.exp(-distances / width), np.exp(-(2 - 2 * (test @ x.T)) / width)),
        "network": (_arc_cosine(x @ x.T), _arc_cosine(test @ x.T)),
    }


def _arc_cosine(cosine: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip(cosine, -1, 1))
    return (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / np.pi


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows scaled to norm 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _nearest(predicted: np.ndarray, answers: np.ndarray, options: np.ndarray) -> np.ndarray:
    """(row,) the option whose answer has the largest cosine with the prediction."""
    return options[np.argmax(predicted @ answers[options].T, axis=1)]


def _accuracy(predicted: np.ndarray, answers: np.ndarray, codes: np.ndarray) -> float:
    return float((_nearest(predicted, answers, np.unique(codes)) == codes).mean())
