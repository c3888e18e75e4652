"""Types of ``pga.json``: some keys belong to the rows of some models only."""

from collections.abc import Mapping, Sequence
from typing import NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from evidence.typed_json import Json
from testbeds.memorized_codes.world import Recall

ByDepth = list[float]
ByColumn = list[list[list[float]]]
"""(view, family, depth)."""


class RecallScores(TypedDict):
    """Probabilities of codes; see ``testbeds.memorized_codes.world.Recall``."""

    least: float
    mean: float
    greedy: float


def recall_scores(recalled: Recall) -> RecallScores:
    """Recall as it is stored."""
    return {"least": recalled.least, "mean": recalled.mean, "greedy": recalled.greedy}


class UtilityScores(TypedDict):
    """Utility before and after an eraser; see ``experiments.pga.utility.Utility``."""

    perplexity: tuple[float, float]
    memorised: tuple[float, float]
    clean: tuple[float, float]
    ratio: float
    role_swap: bool
    kept: bool


class Cost(TypedDict):
    """What an eraser did to the keys it saw, and to everything else."""

    recall: RecallScores
    utility: UtilityScores


class PublishedScores(TypedDict):
    """A model under the published protocol.

    ``utility`` belongs to erasers, and ``six`` to erasers in experiments with the six published
    probe variants: accuracies by variant.
    """

    true: ByDepth
    spread: ByDepth
    concordance: ByDepth
    oriented: ByDepth
    pure: ByDepth | None
    shuffled: ByDepth
    mean_gap: float | None
    reading: str
    uncertified: int
    recall: RecallScores
    utility: NotRequired[UtilityScores]
    six: NotRequired[dict[str, ByDepth]]


class HeldOutScores(TypedDict):
    """A model under the held-out protocol.

    The lower and upper bounds of the AUC are ``interval``; ``band`` is the null's 95 %, and
    ``trained`` the best AUC by trained classifier, where there are any. The last three keys
    belong to erasers.
    """

    auc: ByColumn
    concordance: ByColumn
    interval: list[ByColumn]
    p_column: ByColumn
    best: float
    worst: float
    band: float | None
    p_above: float
    p_below: float
    p: float
    smallest_p: float
    sequences: int
    reading: str
    uncertified: int
    trained: dict[str, float] | None
    recall: NotRequired[RecallScores]
    utility: NotRequired[UtilityScores]
    recall_test: NotRequired[RecallScores]


class ModelRow(TypedDict):
    """One model; an eraser has one row a protocol."""

    model: str
    eraser: str | None
    published: NotRequired[PublishedScores]
    sound: NotRequired[HeldOutScores]


class Projection(TypedDict):
    """See ``experiments.pga.interventions.ProjectionTest``."""

    depth: int
    before: ByDepth
    after: ByDepth
    recall_drop: float
    other_drop: float
    reading: str


class Refit(TypedDict):
    """See ``experiments.pga.interventions.RefitAttack``; ``accuracy`` is the best by round."""

    accuracy: list[float]
    rank: int
    recall_drop: float
    cka: ByDepth
    beaten: bool


class Interventions(TypedDict):
    """The published interventions on the original."""

    uncertified: int
    projection: Projection
    refit: Refit


class Claim(TypedDict):
    """A claim of the published protocol, its evidence in words, and whether it survives."""

    claim: str
    published: str
    sound: str
    outcome: str
    why: str


class World(TypedDict):
    """The world of codes: cards of its models, keys no eraser of the held-out runs saw."""

    card: Mapping[str, Json]
    twin: Mapping[str, Json]
    test_keys: list[int]
    sites: int
    families: Sequence[str]
    views: Sequence[str]


class Document(TypedDict):
    """The whole of ``pga.json``."""

    schema_version: int
    config: Mapping[str, Json]
    world: World
    rows: list[ModelRow]
    interventions: Interventions
    claims: list[Claim]
