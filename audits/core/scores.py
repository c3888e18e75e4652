"""Scores of models on items: what every axis measures."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from audits.core.roles import Role
from evidence.errors import InputError
from evidence.intervals import EntityValues, average_by_entity
from evidence.typed_json import FloatArray


class Part(StrEnum):
    """Which items were scored."""

    FORGET = "forget"
    NEVER_TAUGHT = "never_taught"
    RETAIN = "retain"
    """Retain items that nothing was fitted on."""


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of one part of the items on one model.

    Attributes:
        entities: (row,) entity of each row.
        values: (row, column), each in [0, 1].
    """

    entities: tuple[str, ...]
    values: FloatArray

    def by_entity(self) -> EntityValues:
        """(entity, column) means."""
        return average_by_entity(self.values, self.entities)

    def select(self, mask: NDArray[np.bool_]) -> "ScoreTable":
        """The rows of a mask."""
        names = tuple(name for name, kept in zip(self.entities, mask, strict=True) if kept)
        return ScoreTable(names, self.values[mask])


@dataclass(frozen=True, eq=False)
class RoleScores:
    """Scores by metric, role and part.

    Attributes:
        columns: Names of the tables' columns: layers, checkpoints, schemes, or ("output",).
        tables: Metric to role to part to table.
    """

    columns: tuple[str, ...]
    tables: dict[str, dict[Role, dict[Part, ScoreTable]]]

    def table(self, metric: str, role: Role, part: Part) -> ScoreTable:
        """One table.

        Raises:
            InputError: it was not measured.
        """
        try:
            return self.tables[metric][role][part]
        except KeyError:
            raise InputError(
                f"{metric} of the {part} items was not measured on {role}",
                fix="run the audit again",
            ) from None

    def values(self, metric: str, role: Role, part: Part = Part.FORGET) -> EntityValues:
        """(entity, column) means of one table."""
        return self.table(metric, role, part).by_entity()

    def roles(self, metric: str) -> Sequence[Role]:
        """Roles that the metric was measured on."""
        return list(self.tables[metric])

    def references(self, metric: str, part: Part = Part.FORGET) -> list[EntityValues]:
        """``values`` of every model retrained without the forget set."""
        return [
            self.values(metric, role, part) for role in self.tables[metric] if role.is_reference
        ]
