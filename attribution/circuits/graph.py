"""The edge graph of a transformer: writers to and readers of the residual stream.

Writers are the embedding, the attention heads and the MLPs. Readers are the query input of each
head, the key and value inputs of each group of heads that shares them (grouped-query attention),
the MLPs and the logits. An edge runs from each writer to each later reader. If a model's heads
cannot be separated, whole attention layers take their place.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attribution.circuits.structure import TransformerStructure
from evidence.errors import InputError


@dataclass(frozen=True)
class EdgeGraph:
    """Writers, readers and the edges between them.

    Edges are numbered by reader. The edges of one reader come from the first ``n_upstream``
    writers, so they form a slice.

    Attributes:
        writers: Names, in the order of the forward pass.
        readers: Names, in the order of the forward pass.
        n_upstream: (reader,) number of writers before each reader.
        sources: (reader,) the writers whose output depends on each reader's input; empty for the
            logits.
        note: Why whole attention layers stand for heads; empty if heads are separate.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    n_upstream: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    note: str = ""

    def __repr__(self) -> str:
        return (
            f"EdgeGraph({len(self.writers)} writers, {len(self.readers)} readers, "
            f"{self.n_edges} edges{', ' + self.note if self.note else ''})"
        )

    @cached_property
    def edge_offsets(self) -> tuple[int, ...]:
        """(reader + 1,) index of each reader's first edge, and the number of edges."""
        return (0, *np.cumsum(self.n_upstream).tolist())

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return self.edge_offsets[-1]

    @cached_property
    def edge_writers(self) -> np.ndarray:
        """(edge,) index of each edge's writer."""
        return np.concatenate([np.arange(count) for count in self.n_upstream])

    @cached_property
    def edge_readers(self) -> np.ndarray:
        """(edge,) index of each edge's reader."""
        return np.repeat(np.arange(len(self.readers)), self.n_upstream)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """(edge,) names, such as "head.3.1->q.5.0"."""
        return tuple(
            f"{self.writers[writer]}->{self.readers[reader]}"
            for writer, reader in zip(self.edge_writers, self.edge_readers, strict=True)
        )

    def edges_into(self, reader: int) -> slice:
        """Slice of the edges into one reader."""
        return slice(self.edge_offsets[reader], self.edge_offsets[reader + 1])

    def edge_index(self, edge: str) -> int:
        """Index of an edge by its name.

        Raises:
            InputError: The graph has no such edge.
        """
        writer, _, reader = edge.partition("->")
        if reader in self.readers and writer in self.writers:
            writer_idx = self.writers.index(writer)
            reader_idx = self.readers.index(reader)
            if writer_idx < self.n_upstream[reader_idx]:
                return self.edge_offsets[reader_idx] + writer_idx
        raise InputError(
            f"the graph has no edge {edge!r}",
            expected="WRITER->READER with the writer before the reader, such as "
            f"{self.writers[0]}->{self.readers[-1]}",
            got=repr(edge),
        )

    def mask(self, edges: np.ndarray | list[int] | list[str]) -> np.ndarray:
        """(edge,) mask of edges given by index or by name."""
        indices = [self.edge_index(e) if isinstance(e, str) else int(e) for e in edges]
        edge_mask = np.zeros(self.n_edges, dtype=bool)
        edge_mask[indices] = True
        return edge_mask

    def connected_to_logits(self, edge_mask: np.ndarray) -> np.ndarray:
        """The part of ``edge_mask`` (edge,) from which a path of its edges leads to the logits."""
        connected = np.zeros_like(edge_mask)
        needed = np.zeros(len(self.writers), dtype=bool)
        for reader in reversed(range(len(self.readers))):
            sources = self.sources[reader]
            if sources and not needed[list(sources)].any():
                continue
            edges = self.edges_into(reader)
            connected[edges] = edge_mask[edges]
            needed[: self.n_upstream[reader]] |= edge_mask[edges]
        return connected


def build_graph(structure: TransformerStructure) -> EdgeGraph:
    """The edge graph of a model, by heads if they can be separated."""
    heads, groups = structure.n_heads, structure.n_groups
    writers, readers = ["embed"], []
    upstream: list[int] = []
    sources: list[tuple[int, ...]] = []

    def add_reader(name: str, before: int, feeds: tuple[int, ...]) -> None:
        readers.append(name)
        upstream.append(before)
        sources.append(feeds)

    for layer in range(structure.n_layers):
        before = len(writers)
        if heads:
            writers += [f"head.{layer}.{head}" for head in range(heads)]
            heads_per_group = heads // groups
            for head in range(heads):
                add_reader(f"q.{layer}.{head}", before, (before + head,))
            for kind in ("k", "v"):
                for group in range(groups):
                    first = before + group * heads_per_group
                    feeds = tuple(range(first, first + heads_per_group))
                    add_reader(f"{kind}.{layer}.{group}", before, feeds)
        else:
            writers.append(f"attn.{layer}")
            add_reader(f"attn.{layer}", before, (before,))
        n_before = before if structure.parallel else len(writers)
        add_reader(f"mlp.{layer}", n_before, (len(writers),))
        writers.append(f"mlp.{layer}")
    add_reader("logits", len(writers), ())
    return EdgeGraph(
        tuple(writers),
        tuple(readers),
        tuple(upstream),
        tuple(sources),
        f"whole attention parts stand for heads: {structure.note}" if structure.note else "",
    )
