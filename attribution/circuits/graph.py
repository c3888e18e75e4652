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

from attribution.circuits.structure import Anatomy
from evidence.errors import InputError


@dataclass(frozen=True)
class EdgeGraph:
    """Writers, readers and the edges between them; it holds no scores.

    Edges are numbered reader by reader; those of one reader come from the first so
    many writers, so that a slice holds them.

    Attributes:
        writers: In the order in which the forward pass computes them.
        readers: In the same order.
        upstream: (reader,) how many writers come before each reader.
        sources: (reader,) the writers whose output depends on what each reader
            reads; empty for the logits.
        note: Why whole attention parts stand for heads; empty where heads do.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    upstream: tuple[int, ...]
    sources: tuple[tuple[int, ...], ...]
    note: str = ""

    def __repr__(self) -> str:
        return (
            f"EdgeGraph({len(self.writers)} writers, {len(self.readers)} readers, "
            f"{self.n_edges} edges{', ' + self.note if self.note else ''})"
        )

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """(reader + 1,) number of the first edge of each reader, and of edges."""
        return (0, *np.cumsum(self.upstream).tolist())

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return self.starts[-1]

    @cached_property
    def edge_writers(self) -> np.ndarray:
        """(edge,) which writer each edge starts from."""
        return np.concatenate([np.arange(count) for count in self.upstream])

    @cached_property
    def edge_readers(self) -> np.ndarray:
        """(edge,) which reader each edge ends at."""
        return np.repeat(np.arange(len(self.readers)), self.upstream)

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """(edge,) names, such as "head.3.1->q.5.0"."""
        return tuple(
            f"{self.writers[writer]}->{self.readers[reader]}"
            for writer, reader in zip(self.edge_writers, self.edge_readers, strict=True)
        )

    def of(self, reader: int) -> slice:
        """The edges of one reader."""
        return slice(self.starts[reader], self.starts[reader + 1])

    def number(self, edge: str) -> int:
        """The number of an edge by its name.

        Raises:
            InputError: the graph has no such edge.
        """
        writer, _, reader = edge.partition("->")
        if reader in self.readers and writer in self.writers:
            place = self.writers.index(writer)
            at = self.readers.index(reader)
            if place < self.upstream[at]:
                return self.starts[at] + place
        raise InputError(
            f"the graph has no edge {edge!r}",
            expected="WRITER->READER with the writer before the reader, such as "
            f"{self.writers[0]}->{self.readers[-1]}",
            got=repr(edge),
        )

    def mask(self, edges: np.ndarray | list[int] | list[str]) -> np.ndarray:
        """(edge,) True at the edges given by number or by name."""
        numbers = [self.number(e) if isinstance(e, str) else int(e) for e in edges]
        chosen = np.zeros(self.n_edges, dtype=bool)
        chosen[numbers] = True
        return chosen

    def with_path(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen edges from which chosen edges lead on to the logits.

        Args:
            chosen: (edge,) bool.

        Returns:
            (edge,) bool, a part of ``chosen``.
        """
        kept = np.zeros_like(chosen)
        alive = np.zeros(len(self.writers), dtype=bool)
        for reader in reversed(range(len(self.readers))):
            feeds = self.sources[reader]
            if feeds and not alive[list(feeds)].any():
                continue
            here = self.of(reader)
            kept[here] = chosen[here]
            alive[: self.upstream[reader]] |= chosen[here]
        return kept


def build_graph(anatomy: Anatomy) -> EdgeGraph:
    """The graph of a model, by heads where they can be told apart.

    Args:
        anatomy: The model's, from ``find_anatomy``.
    """
    heads, groups = anatomy.n_heads, anatomy.n_groups
    writers, readers = ["embed"], []
    upstream: list[int] = []
    sources: list[tuple[int, ...]] = []

    def read(name: str, before: int, feeds: tuple[int, ...]) -> None:
        readers.append(name)
        upstream.append(before)
        sources.append(feeds)

    for layer in range(anatomy.n_layers):
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
        seen = before if anatomy.parallel else len(writers)
        read(f"mlp.{layer}", seen, (len(writers),))
        writers.append(f"mlp.{layer}")
    read("logits", len(writers), ())
    return EdgeGraph(
        tuple(writers),
        tuple(readers),
        tuple(upstream),
        tuple(sources),
        f"whole attention parts stand for heads: {anatomy.note}"
        if anatomy.note
        else "",
    )
