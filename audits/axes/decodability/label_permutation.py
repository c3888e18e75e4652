"""Would other answers have been read as well? A null made by dealing answers anew.

A probe finds a direction, and along it all entities move together, so entities alone
understate how far a score strays from chance by luck. Dealing the answers anew among
the entities of a part keeps the probe and its directions and breaks nothing but which
answer belongs to whom.
"""

from collections.abc import Sequence
from math import factorial, prod

import numpy as np

from audits.axes.decodability.site_probes import SiteProbe
from audits.axes.decodability.tasks import Task, TaskPart, within_entity_rank
from audits.axes.decodability.text_probes import ProbingData
from evidence.hypothesis_tests import MaxTest, max_test


def answer_permutation_test(
    probing: ProbingData,
    probes: Sequence[SiteProbe],
    role: str,
    part: str,
    mask: np.ndarray,
    rng: np.random.Generator,
    n_permutations: int,
) -> tuple[MaxTest, np.ndarray]:
    """Are the true answers read better than answers dealt anew to the entities?

    Exact where the answers of the entities could have been dealt in any order, as
    those of invented ones were.

    Args:
        probing: Tasks and states.
        probes: One a task.
        role: Role whose states are read.
        part: Part of the tasks to read.
        mask: (site,) which sites to look at.
        rng: Deals.
        n_permutations: How many.

    Returns:
        The test over the sites used, its differences taken from the mean over deals,
        and that mean (used site,).
    """
    names = [e for task in probing.tasks for e in scored_entities(task, part)]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    observed = np.zeros(int(mask.sum()))
    null = np.zeros((n_permutations, int(mask.sum())))
    ways = 1
    for number, (task, reader) in enumerate(zip(probing.tasks, probes, strict=True)):
        texts = task.parts[part]
        scores = reader.scores(probing.states[role].parts[number, part])[mask]
        weights = np.array([1 / counts[name] for name in texts.entities]) / len(counts)
        deal = _permute_shared if task.form == "shared" else _permute_unique
        true, dealt, distinct = deal(texts, scores, weights, rng, n_permutations)
        observed += true
        null += dealt
        ways *= distinct
    centre = null.mean(0)
    return max_test(observed - centre, null - centre, ways), centre


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
    deals: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Weighted hits (site,), the same under each deal, and how many deals there are.

    Entities exchange their answers; all rows of one entity go together.
    """
    own = {e: int(y) for e, y in zip(part.entities, part.labels, strict=True)}
    place = {name: index for index, name in enumerate(own)}
    index = np.array([place[name] for name in part.entities])
    answers = np.array(list(own.values()))
    predicted = scores.argmax(2)
    true = (predicted == part.labels) @ weights
    null = np.empty((deals, len(scores)))
    for number in range(deals):
        labels = rng.permutation(answers)[index]
        null[number] = (predicted == labels) @ weights
    counts = np.bincount(answers)
    ways = factorial(len(answers)) // prod(factorial(int(each)) for each in counts)
    return true, null, ways


def _permute_unique(
    part: TaskPart,
    scores: np.ndarray,
    weights: np.ndarray,
    rng: np.random.Generator,
    deals: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """As ``_deal_shared``: the entities of a block exchange their answers."""
    found = within_entity_rank(part, scores[:, :, 0])
    true = (weights * (part.labels == 1)) @ found
    null = np.zeros((deals, len(scores)))
    orders: dict[tuple[str, ...], np.ndarray] = {}
    for group in np.unique(part.groups):
        rows = np.flatnonzero(part.groups == group)
        width = int(part.columns[rows].max()) + 1
        # Rows lie entity by entity, answer by answer.
        table = found[rows].reshape(-1, width, found.shape[1])
        own = part.labels[rows].reshape(-1, width).argmax(1)
        answers = tuple(part.answers[row] for row in rows[:width])
        if answers not in orders:  # every wording of a block is dealt alike
            orders[answers] = rng.permuted(
                np.tile(np.arange(width), (deals, 1)), axis=1
            )
        for entity, share in enumerate(weights[rows[::width]]):
            null += share * table[entity, orders[answers][:, own[entity]]]
    return true, null, prod(factorial(len(answers)) for answers in orders)
