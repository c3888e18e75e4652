"""The graph of a transformer: what writes to the residual stream, what reads it.

Writers are the embedding, attention heads and feed-forward parts. Readers are the
query input of each head, the key and value input of each group of heads that shares
them (grouped-query attention), the feed-forward parts and the logits. There is an edge
from each writer to each reader after it.

In a model whose heads cannot be told apart, whole attention parts stand for heads.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from attribution.circuits.structure import TransformerStructure
from evidence.errors import InputError


@dataclass(frozen=True)
class EdgeGraph:
    """Writers, readers and the edges between them; it holds no scores.

    Edges are numbered reader by reader; those of one reader come from the first so
    many writers, so that a slice holds them.

    Attributes:
        writers: In the order in which the forward pass computes them.
        readers: In the same order.
        n_upstream: (reader,) how many writers come before each reader.
        sources: (reader,) the writers whose output depends on what each reader
            reads; empty for the logits.
        note: Why whole attention parts stand for heads; empty where heads do.
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
        """(reader + 1,) number of the first edge of each reader, and of edges."""
        return (0, *np.cumsum(self.n_upstream).tolist())

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return self.edge_offsets[-1]

    @cached_property
    def edge_writers(self) -> np.ndarray:
        """(edge,) which writer each edge starts from."""
        return np.concatenate([np.arange(count) for count in self.n_upstream])

    @cached_property
    def edge_readers(self) -> np.ndarray:
        """(edge,) which reader each edge ends at."""
        return np.repeat(np.arange(len(self.readers)), self.n_upstream)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """(edge,) names, such as "head.3.1->q.5.0"."""
        return tuple(
            f"{self.writers[writer]}->{self.readers[reader]}"
            for writer, reader in zip(self.edge_writers, self.edge_readers, strict=True)
        )

    def edges_into(self, reader: int) -> slice:
        """The edges of one reader."""
        return slice(self.edge_offsets[reader], self.edge_offsets[reader + 1])

    def edge_index(self, edge: str) -> int:
        """The number of an edge by its name.

        Raises:
            InputError: the graph has no such edge.
        """
        writer, _, reader = edge.partition("->")
        if reader in self.readers and writer in self.writers:
            place = self.writers.index(writer)
            at = self.readers.index(reader)
            if place < self.n_upstream[at]:
                return self.edge_offsets[at] + place
        raise InputError(
            f"the graph has no edge {edge!r}",
            expected="WRITER->READER with the writer before the reader, such as "
            f"{self.writers[0]}->{self.readers[-1]}",
            got=repr(edge),
        )

    def mask(self, edges: np.ndarray | list[int] | list[str]) -> np.ndarray:
        """(edge,) True at the edges given by number or by name."""
        numbers = [self.edge_index(e) if isinstance(e, str) else int(e) for e in edges]
        chosen = np.zeros(self.n_edges, dtype=bool)
        chosen[numbers] = True
        return chosen

    def connected_to_logits(self, edge_mask: np.ndarray) -> np.ndarray:
        """The chosen edges from which chosen edges lead on to the logits.

        Args:
            edge_mask: (edge,) bool.

        Returns:
            (edge,) bool, a part of ``edge_mask``.
        """
        kept = np.zeros_like(edge_mask)
        alive = np.zeros(len(self.writers), dtype=bool)
        for reader in reversed(range(len(self.readers))):
            feeds = self.sources[reader]
            if feeds and not alive[list(feeds)].any():
                continue
            here = self.edges_into(reader)
            kept[here] = edge_mask[here]
            alive[: self.n_upstream[reader]] |= edge_mask[here]
        return kept


def build_graph(structure: TransformerStructure) -> EdgeGraph:
    """The graph of a model, by heads where they can be told apart.

    Args:
        structure: The model's, from ``find_structure``.
    """
    heads, groups = structure.n_heads, structure.n_groups
    writers, readers = ["embed"], []
    upstream: list[int] = []
    sources: list[tuple[int, ...]] = []

    def read(name: str, before: int, feeds: tuple[int, ...]) -> None:
        readers.append(name)
        upstream.append(before)
        sources.append(feeds)

    for layer in range(structure.n_layers):
        before = len(writers)
        if heads:
            writers += [f"head.{layer}.{head}" for head in range(heads)]
            each = heads // groups
            for head in range(heads):
                read(f"q.{layer}.{head}", before, (before + head,))
            for kind in ("k", "v"):
                for group in range(groups):
                    first = before + group * each
                    feeds = tuple(range(first, first + each))
                    read(f"{kind}.{layer}.{group}", before, feeds)
        else:
            writers.append(f"attn.{layer}")
            read(f"attn.{layer}", before, (before,))
        seen = before if structure.parallel else len(writers)
        read(f"mlp.{layer}", seen, (len(writers),))
        writers.append(f"mlp.{layer}")
    read("logits", len(writers), ())
    return EdgeGraph(
        tuple(writers),
        tuple(readers),
        tuple(upstream),
        tuple(sources),
        f"whole attention parts stand for heads: {structure.note}"
        if structure.note
        else "",
    )
