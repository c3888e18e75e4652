"""Scores of edges, as a frozen table."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from attribution.circuits.graph import EdgeGraph
from attribution.circuits.metrics import MetricName


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores:
    """What corrupting each edge is estimated to do to the metric, pair by pair.

    A score estimates how much the metric of the clean prompt *rises* when the edge
    alone carries what it carries in the corrupt prompt; an edge that the answer hangs
    on has a negative score.

    Attributes:
        graph: The edges.
        values: (pair, edge) float32, in units of the metric, read-only.
        clean: (pair,) the metric of the clean prompts.
        corrupt: (pair,) the metric of the corrupt prompts, same answers.
        entities: (pair,) whom each clean prompt is about.
        ids: (pair,) name of each pair.
        metric: What was attributed.
        method: How, in words.
    """

    graph: EdgeGraph
    values: np.ndarray
    clean: np.ndarray
    corrupt: np.ndarray
    entities: tuple[str, ...]
    ids: tuple[str, ...]
    metric: MetricName
    method: str

    def __post_init__(self) -> None:
        for array in (self.values, self.clean, self.corrupt):
            array.setflags(write=False)

    def __repr__(self) -> str:
        low, high = np.sort(np.abs(self.mean))[[0, -1]]
        return (
            f"EdgeScores({self.method}, {self.metric}: {len(self.ids)} pairs, "
            f"{self.graph.n_edges} edges, |mean| {low:.2g} to {high:.2g})"
        )

    @property
    def mean(self) -> np.ndarray:
        """(edge,) mean over entities, each counting once however many its pairs."""
        return self.by_entity().mean(0)

    def by_entity(self) -> np.ndarray:
        """(entity, edge) mean over the pairs of each entity, in order of appearance."""
        names = tuple(dict.fromkeys(self.entities))
        place = {name: index for index, name in enumerate(names)}
        index = np.array([place[entity] for entity in self.entities])
        sums = np.zeros((len(names), self.values.shape[1]))
        np.add.at(sums, index, self.values)
        return sums / np.bincount(index)[:, None]

    def node_scores(self) -> np.ndarray:
        """(pair, writer) sum over the edges that leave each writer.

        For scores that are linear in the gradient (all but those with corrections)
        it is the score of the writer itself: corrupting it everywhere at once.
        """
        sums = np.zeros((len(self.ids), len(self.graph.writers)))
        for reader, count in enumerate(self.graph.n_upstream):
            sums[:, :count] += self.values[:, self.graph.edges_into(reader)]
        return sums

    def top(self, count: int) -> np.ndarray:
        """(count,) numbers of the edges of largest absolute mean, largest first."""
        return np.argsort(-np.abs(self.mean), kind="stable")[:count]

    def to_frame(self) -> pd.DataFrame:
        """One row an edge, largest absolute mean first: edge, ends, score, spread."""
        order = self.top(self.graph.n_edges)
        entity = self.by_entity()
        spread = entity.std(0, ddof=1) if len(entity) > 1 else np.full(len(order), 0.0)
        frame = pd.DataFrame(
            {
                "edge": self.graph.edges,
                "writer": [self.graph.writers[i] for i in self.graph.edge_writers],
                "reader": [self.graph.readers[i] for i in self.graph.edge_readers],
                "score": entity.mean(0),
                "standard_deviation": spread,
            }
        )
        return frame.iloc[order].reset_index(drop=True)
