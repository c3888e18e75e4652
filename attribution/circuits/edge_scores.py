"""Table of edge scores."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attribution.circuits.graph import EdgeGraph
from attribution.circuits.metrics import METRICS, MetricName
from evidence.display.html_table import frame_html
from evidence.storage.array_files import part_errors, read_arrays, write_arrays


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores:
    """Estimated effect of corrupting each edge on the metric, by prompt pair.

    A score estimates how much the metric of the clean prompt *increases* if the edge alone carries
    its value of the corrupt prompt. An edge that supports the answer has a negative score.

    Attributes:
        graph: The edges.
        values: (pair, edge) float32, in units of the metric, read-only.
        clean: (pair,) metric of the clean prompts.
        corrupt: (pair,) metric of the corrupt prompts, for the same answers.
        entities: (pair,) entity of each clean prompt.
        ids: (pair,) name of each pair.
        metric: The attributed metric.
        method: Description of the method.

    Examples:
        >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
        >>> scores = exhume.score_edges(model, pairs, method=exhume.EapMethod("eap"))
        >>> scores.to_frame().columns.tolist()
        ['edge', 'writer', 'reader', 'score', 'standard_deviation']
        >>> scores.by_entity().shape
        (8, 110)
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

    def _repr_html_(self) -> str:
        columns = ["edge", "score", "standard_deviation"]
        return frame_html(repr(self), self.to_frame().reindex(columns=columns))

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, atomically.

        Raises:
            InputError: The disk is full, read-only or not writable.
        """
        arrays = {"values": self.values, "clean": self.clean, "corrupt": self.corrupt}
        note = {name: getattr(self, name) for name in ("entities", "ids", "metric", "method")}
        write_arrays(path, "EdgeScores", arrays, note | {"graph": asdict(self.graph)})

    @classmethod
    def load(cls, path: str | Path) -> "EdgeScores":
        """Read what ``save`` wrote, the same bit by bit.

        Raises:
            InputError: There is no such file, it is damaged, or it holds something else.

        Examples:
            >>> pairs = exhume.pair_items(tokenizer, births[:8], np.random.default_rng(0))
            >>> scores = exhume.score_edges(model, pairs, method=exhume.EapMethod("eap"))
            >>> scores.save("scores.safetensors")
            >>> same = exhume.EdgeScores.load("scores.safetensors")
            >>> same.graph == scores.graph, np.array_equal(same.values, scores.values)
            (True, True)
        """
        arrays, note = read_arrays(path, "EdgeScores")
        with part_errors(path, "EdgeScores"):
            graph = EdgeGraph(
                tuple(map(str, note["graph"]["writers"])),
                tuple(map(str, note["graph"]["readers"])),
                tuple(map(int, note["graph"]["n_upstream"])),
                tuple(tuple(map(int, each)) for each in note["graph"]["sources"]),
                str(note["graph"]["note"]),
            )
            values, clean, corrupt = (arrays[name] for name in ("values", "clean", "corrupt"))
            entities, ids = (tuple(map(str, note[name])) for name in ("entities", "ids"))
            rows = {len(entities), len(ids), *clean.shape, *corrupt.shape}
            if values.shape != (len(ids), graph.n_edges) or rows != {len(ids)}:
                raise ValueError(f"values of shape {values.shape} for {graph.n_edges} edges")
            if note["metric"] not in METRICS or len(graph.readers) != len(graph.n_upstream):
                raise ValueError("the metric or the graph is unknown")
            return cls(graph, values, clean, corrupt, entities, ids, note["metric"], note["method"])

    @property
    def mean(self) -> np.ndarray:
        """(edge,) mean over entities; each entity counts once, whatever its number of pairs."""
        return self.by_entity().mean(0)

    def by_entity(self) -> np.ndarray:
        """(entity, edge) mean over each entity's pairs, in order of first appearance."""
        names = tuple(dict.fromkeys(self.entities))
        position = {name: entity_idx for entity_idx, name in enumerate(names)}
        entity_idx = np.array([position[entity] for entity in self.entities])
        sums = np.zeros((len(names), self.values.shape[1]))
        np.add.at(sums, entity_idx, self.values)
        return sums / np.bincount(entity_idx)[:, None]

    def node_scores(self) -> np.ndarray:
        """(pair, writer) sum over the edges that leave each writer.

        For scores that are linear in the gradient (all without corrections) this is the score of
        the writer itself: the effect of corrupting all its edges at once.
        """
        sums = np.zeros((len(self.ids), len(self.graph.writers)))
        for reader, count in enumerate(self.graph.n_upstream):
            sums[:, :count] += self.values[:, self.graph.edges_into(reader)]
        return sums

    def top(self, count: int) -> np.ndarray:
        """(count,) indices of the edges of largest absolute mean, largest first."""
        return np.argsort(-np.abs(self.mean), kind="stable")[:count]

    def to_frame(self) -> pd.DataFrame:
        """One row per edge, largest absolute mean first."""
        order = self.top(self.graph.n_edges)
        by_entity = self.by_entity()
        spread = by_entity.std(0, ddof=1) if len(by_entity) > 1 else np.full(len(order), 0.0)
        frame = pd.DataFrame(
            {
                "edge": self.graph.edges,
                "writer": [self.graph.writers[i] for i in self.graph.edge_writers],
                "reader": [self.graph.readers[i] for i in self.graph.edge_readers],
                "score": by_entity.mean(0),
                "standard_deviation": spread,
            }
        )
        return frame.iloc[order].reset_index(drop=True)
