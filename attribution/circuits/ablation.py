"""Running a model with some of its edges cut: the intervention that scores estimate.

A cut edge gives its reader what its writer would have added under ablation; every
other edge carries what the writer adds in this very run. Readers none of whose edges
are cut are left alone, so cutting one edge costs little more than a plain pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from attribution.circuits.forward_backward import (
    ForwardPass,
    InstrumentedModel,
    kinds_by_map,
    run_forward,
    writer_outputs,
)
from attribution.circuits.metrics import PairBatch, at_least_float32
from attribution.circuits.qkv_projections import weight_matrix
from attribution.circuits.structure import head_outputs
from capture.network.hooks import Edit
from evidence.errors import InputError

AblationName = Literal["corrupt", "mean", "zero"]


def check_ablation(name: str) -> AblationName:
    """``name`` if it is a way to ablate.

    Raises:
        InputError: it is not.
    """
    for known in get_args(AblationName):
        if name == known:
            return known
    raise InputError(
        "the ablation is not known",
        expected=", ".join(get_args(AblationName)),
        got=repr(name),
    )


def ablated_values(
    instrumented: InstrumentedModel,
    batch: PairBatch,
    ablation: AblationName,
    mean: Tensor | None,
) -> Tensor:
    """(row, writer, position, d_model) what cut edges carry.

    Args:
        instrumented: The model.
        batch: The pairs.
        ablation: "corrupt" takes the corrupt run, "zero" nothing, "mean" ``mean``.
        mean: (writer, d_model), from ``mean_values``.
    """
    if ablation == "corrupt":
        return writer_outputs(
            instrumented,
            run_forward(instrumented, batch.corrupt, batch.metric_mask).by_site,
        )
    rows, length = batch.token_mask.shape
    width = instrumented.structure.d_model
    shape = (rows, len(instrumented.graph.writers), length, width)
    if ablation == "zero" or mean is None:
        return torch.zeros(shape, device=batch.token_mask.device)
    return mean[None, :, None].expand(shape)


def mean_values(instrumented: InstrumentedModel, batches: list[PairBatch]) -> Tensor:
    """(writer, d_model) what each writer adds on average.

    Over all real positions of clean and corrupt prompts.
    """
    total, count = torch.zeros(()), 0.0
    for batch in batches:
        for rows in (batch.clean, batch.corrupt):
            values = writer_outputs(
                instrumented, run_forward(instrumented, rows, batch.metric_mask).by_site
            )
            weights = rows.attention_mask.to(values.dtype)
            total = torch.einsum("rwpd,rp->wd", values, weights) + total
            count += float(weights.sum())
    return total / count


def run_ablated(
    instrumented: InstrumentedModel,
    batch: PairBatch,
    edge_mask: np.ndarray,
    values: Tensor,
) -> ForwardPass:
    """Run the clean prompts with edges cut.

    Args:
        instrumented: The model.
        batch: The pairs.
        edge_mask: (edge,) bool, the edges to cut.
        values: (row, writer, position, d_model) what they carry instead.

    Raises:
        InputError: ``edge_mask`` does not have one entry an edge.
    """
    if edge_mask.shape != (instrumented.graph.n_edges,):
        raise InputError(
            "the edges to cut do not fit the graph",
            expected=f"({instrumented.graph.n_edges},)",
            got=str(edge_mask.shape),
        )
    cutter = _EdgeCutter(instrumented, edge_mask, values.to(batch.token_mask.device))
    return run_forward(instrumented, batch.clean, batch.metric_mask, cutter.edits())


@dataclass
class _EdgeCutter:
    """Follows one pass: learns what writers add, and tells readers what they see."""

    subject: InstrumentedModel
    cut: np.ndarray
    values: Tensor
    gaps: Tensor = field(init=False)
    streams: dict[str, Tensor] = field(default_factory=dict)
    reading: bool = False

    def __post_init__(self) -> None:
        self.gaps = torch.zeros_like(self.values, memory_format=torch.contiguous_format)

    def edits(self) -> dict[str, Edit]:
        """The edits that make up the whole intervention."""
        anatomy, graph = self.subject.structure, self.subject.graph
        found: dict[str, Edit] = {"embed": self._write("embed", 0)}
        reader, writer = 0, 1
        for layer, block in enumerate(anatomy.blocks):
            norm = f"attn_read.{layer}"
            if anatomy.n_heads:
                maps = block.qkv
                assert maps is not None
                counts = {
                    "q": anatomy.n_heads,
                    "k": anatomy.n_groups,
                    "v": anatomy.n_groups,
                }
                firsts = dict(
                    zip(counts, np.cumsum([reader, *counts.values()]), strict=False)
                )
                for name, kinds in kinds_by_map(anatomy, layer).items():
                    spans = {
                        kind: range(firsts[kind], firsts[kind] + counts[kind])
                        for kind in kinds
                    }
                    if self._any_cut(spans.values()):
                        found[norm] = self._see(norm)
                        found[f"{name}.{layer}"] = self._heads(layer, spans)
                reader += sum(counts.values())
                found[f"z.{layer}"] = self._write(f"z.{layer}", writer)
                writer += anatomy.n_heads
            else:
                if self._any_cut([range(reader, reader + 1)]):
                    found[norm] = self._see(norm)
                    part = self._part(norm, block.attention_norm, reader)
                    found[f"attn_in.{layer}"] = part
                reader += 1
                found[f"attn.{layer}"] = self._write(f"attn.{layer}", writer)
                writer += 1
            norm = f"mlp_read.{layer}"
            if self._any_cut([range(reader, reader + 1)]):
                found[norm] = self._see(norm)
                found[f"mlp_in.{layer}"] = self._part(norm, block.mlp_norm, reader)
            reader += 1
            found[f"mlp.{layer}"] = self._write(f"mlp.{layer}", writer)
            writer += 1
        last = len(graph.readers) - 1
        if self._any_cut([range(last, last + 1)]):
            found["final_read"] = lambda value: self._seen(value, last, last + 1)[0]
        return found

    def _any_cut(self, spans) -> bool:
        starts = self.subject.graph.edge_offsets
        return any(self.cut[starts[s.start] : starts[s.stop]].any() for s in spans)

    def _write(self, place: str, writer: int) -> Edit:
        """Note how far what is written is from what a cut edge carries."""

        def note(value: Tensor) -> Tensor:
            if place.startswith("z."):
                layer = int(place.split(".")[1])
                added = head_outputs(self.subject.structure, layer, value)
                added = added.transpose(0, 1)
            else:
                added = value[:, None]
            here = slice(writer, writer + added.shape[1])
            self.gaps[:, here] = self.values[:, here] - at_least_float32(added)
            return value

        return note

    def _see(self, place: str) -> Edit:
        def keep(value: Tensor) -> Tensor:
            if not self.reading:  # a norm called by this class reads another stream
                self.streams[place] = value
            return value

        return keep

    def _seen(self, stream: Tensor, first: int, stop: int) -> Tensor:
        """(reader, row, position, d_model) what readers of the same writers see."""
        graph = self.subject.graph
        count = graph.n_upstream[first]
        cut = self.cut[graph.edge_offsets[first] : graph.edge_offsets[stop]].reshape(
            -1, count
        )
        # A circuit's own mask is read-only, which as_tensor warns of.
        weights = torch.tensor(cut, device=stream.device).to(self.gaps.dtype)
        shift = torch.einsum("hw,rwpd->hrpd", weights, self.gaps[:, :count])
        return stream + shift.to(stream.dtype)

    def _normed(self, norm, stream: Tensor) -> Tensor:
        self.reading = True
        try:
            return norm(stream)
        finally:
            self.reading = False

    def _heads(self, layer: int, spans: Mapping[str, range]) -> Edit:
        block = self.subject.structure.blocks[layer]
        maps = block.qkv
        assert maps is not None

        def change(value: Tensor) -> Tensor:
            stream = self.streams[f"attn_read.{layer}"]
            plain = self._normed(block.attention_norm, stream)
            new = value.clone()
            for kind, span in spans.items():
                if not self._any_cut([span]):
                    continue
                seen = self._seen(stream, span.start, span.stop)
                shift = self._normed(block.attention_norm, seen) - plain
                columns = maps.columns[kind]
                weight = weight_matrix(maps.linears[kind])[columns]
                moved = torch.einsum("hrpd,hsd->rphs", shift, weight)
                new[..., columns.flatten()] += moved.flatten(2)
            return new

        return change

    def _part(self, place: str, norm, reader: int) -> Edit:
        def change(value: Tensor) -> Tensor:
            seen = self._seen(self.streams[place], reader, reader + 1)[0]
            return self._normed(norm, seen)

        return change
