"""Permutation test: are the true answers decoded better than permuted ones?

A probe finds one direction, along which all entities move together, so resampling entities
understates the chance deviation of a score. Permuting the answers among the entities of a part
keeps the probe and its directions and breaks only which answer belongs to whom.
"""

from collections import Counter
from collections.abc import Sequence
from math import factorial, prod

import numpy as np

from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task, TaskPart, rows_by_group, within_entity_rank
from audits.axes.decodability.text_probes import TASK_PARTS, ProbingData
from audits.core.roles import Role
from audits.core.scores import Part
from evidence.hypothesis_tests import MaxTest, max_test


def answer_permutation_test(
    probing: ProbingData,
    probes: Sequence[SiteProbe],
    role: Role,
    part: Part,
    mask: np.ndarray,
    rng: np.random.Generator,
    n_permutations: int,
) -> tuple[MaxTest, np.ndarray]:
    """Test the true answers against answers permuted among the entities.

    Exact where the entities' answers are exchangeable, as those of invented entities are.

    Args:
        probes: One probe a task.
        role: Role whose states are read.
        mask: (site,) mask of the sites tested.
        n_permutations: Number of permutations.

    Returns:
        The max test over the masked sites, with differences from the permutation mean, and that
        mean (masked site,).
    """
    key = TASK_PARTS[part]
    counts = Counter(e for task in probing.tasks for e in scored_entities(task, key))
    observed = np.zeros(int(mask.sum()))
    null = np.zeros((n_permutations, int(mask.sum())))
    n_distinct = 1
    for number, (task, probe) in enumerate(zip(probing.tasks, probes, strict=True)):
        texts = task.parts[key]
        scores = probe.scores(probing.states[role].parts[number, key])[mask]
        weights = np.array([1 / counts[name] for name in texts.entities]) / len(counts)
        permute = _permute_shared if task.form == "shared" else _permute_unique
        true, permuted, distinct = permute(texts, scores, weights, rng, n_permutations)
        observed += true
        null += permuted
        n_distinct *= distinct
    center = null.mean(0)
    return max_test(observed - center, null - center, n_distinct), center


def scored_entities(task: Task, part: str) -> list[str]:
    """(scored row,) entity of each row that ``row_scores`` gives a score."""
    texts = task.parts[part]
    if task.form == "shared":
        return list(texts.entities)
    return [e for e, y in zip(texts.entities, texts.labels, strict=True) if y]


def _permute_shared(
    part: TaskPart,
    scores: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    n_permutations: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Weighted hits (site,), (permutation, site) hits, and the number of permutations.

    Entities exchange their answers; all rows of one entity move together.
    """
    answer_of = {e: int(y) for e, y in zip(part.entities, part.labels, strict=True)}
    position = {name: index for index, name in enumerate(answer_of)}
    index = np.array([position[name] for name in part.entities])
    answers = np.array(list(answer_of.values()))
    predicted = scores.argmax(2)
    true = (predicted == part.labels) @ weights
    null = np.empty((n_permutations, len(scores)))
    for number in range(n_permutations):
        labels = rng.permutation(answers)[index]
        null[number] = (predicted == labels) @ weights
    counts = np.bincount(answers)
    n_distinct = factorial(len(answers)) // prod(factorial(int(count)) for count in counts)
    return true, null, n_distinct


def _permute_unique(
    part: TaskPart,
    scores: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    n_permutations: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """As ``_permute_shared``: entities of one block exchange their answers."""
    ranks = within_entity_rank(part, scores[:, :, 0])
    true = (weights * (part.labels == 1)) @ ranks
    null = np.zeros((n_permutations, len(scores)))
    orders: dict[tuple[str, ...], np.ndarray] = {}
    for rows in rows_by_group(part):
        width = int(part.columns[rows].max()) + 1
        # Rows lie entity by entity, answer by answer.
        table = ranks[rows].reshape(-1, width, ranks.shape[1])
        true_columns = part.labels[rows].reshape(-1, width).argmax(1)
        answers = tuple(part.answers[row] for row in rows[:width])
        if answers not in orders:  # all paraphrases of a block share a permutation
            orders[answers] = rng.permuted(np.tile(np.arange(width), (n_permutations, 1)), axis=1)
        for entity, share in enumerate(weights[rows[::width]]):
            null += share * table[entity, orders[answers][:, true_columns[entity]]]
    return true, null, prod(factorial(len(answers)) for answers in orders)
