"""Edge ablation: run a model with some edges of its graph ablated.

An ablated edge passes its reader a fixed value in place of the writer's output; every other edge
passes the writer's output in the same run. Readers without ablated edges are computed as usual, so
ablating one edge costs little more than a plain forward pass.
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
    """Return ``name`` if it is a supported ablation.

    Raises:
        InputError: It is not.
    """
    for known in get_args(AblationName):
        if name == known:
            return known
    raise InputError(
        "the ablation is not known", expected=", ".join(get_args(AblationName)), got=repr(name)
    )


def ablated_values(
    instrumented: InstrumentedModel, batch: PairBatch, ablation: AblationName, mean: Tensor | None
) -> Tensor:
    """(row, writer, position, d_model) values that ablated edges carry.

    Args:
        ablation: "corrupt" takes the corrupt run, "zero" is 0, "mean" takes ``mean``.
        mean: (writer, d_model), from ``mean_values``.
    """
    if ablation == "corrupt":
        return writer_outputs(
            instrumented, run_forward(instrumented, batch.corrupt, batch.metric_mask).by_site
        )
    rows, length = batch.token_mask.shape
    width = instrumented.structure.d_model
    shape = (rows, len(instrumented.graph.writers), length, width)
    if ablation == "zero" or mean is None:
        return torch.zeros(shape, device=batch.token_mask.device)
    return mean[None, :, None].expand(shape)


def mean_values(instrumented: InstrumentedModel, batches: list[PairBatch]) -> Tensor:
    """(writer, d_model) mean output of each writer over all tokens of clean and corrupt prompts."""
    total, count = torch.zeros(()), 0.0
    for batch in batches:
        for prompts in (batch.clean, batch.corrupt):
            values = writer_outputs(
                instrumented, run_forward(instrumented, prompts, batch.metric_mask).by_site
            )
            weights = prompts.attention_mask.to(values.dtype)
            total = torch.einsum("rwpd,rp->wd", values, weights) + total
            count += float(weights.sum())
    return total / count


def run_ablated(
    instrumented: InstrumentedModel, batch: PairBatch, edge_mask: np.ndarray, values: Tensor
) -> ForwardPass:
    """Run the clean prompts with edges ablated.

    Args:
        edge_mask: (edge,) bool, the edges to ablate.
        values: (row, writer, position, d_model) values that they carry instead.

    Raises:
        InputError: ``edge_mask`` does not have one entry per edge.
    """
    if edge_mask.shape != (instrumented.graph.n_edges,):
        raise InputError(
            "the edge mask does not fit the graph",
            expected=f"({instrumented.graph.n_edges},)",
            got=str(edge_mask.shape),
        )
    ablation = _EdgeCutter(instrumented, edge_mask, values.to(batch.token_mask.device))
    return run_forward(instrumented, batch.clean, batch.metric_mask, ablation.edits())


@dataclass
class _EdgeCutter:
    """Records what writers add during one pass and edits the inputs of readers accordingly."""

    instrumented: InstrumentedModel
    edge_mask: np.ndarray
    values: Tensor
    deltas: Tensor = field(init=False)
    streams: dict[str, Tensor] = field(default_factory=dict)
    in_norm: bool = False

    def __post_init__(self) -> None:
        self.deltas = torch.zeros_like(self.values, memory_format=torch.contiguous_format)

    def edits(self) -> dict[str, Edit]:
        """The edits that make up the intervention."""
        structure, graph = self.instrumented.structure, self.instrumented.graph
        edits: dict[str, Edit] = {"embed": self._record_writer("embed", 0)}
        reader, writer = 0, 1
        for layer, block in enumerate(structure.blocks):
            norm = f"attn_read.{layer}"
            if structure.n_heads:
                maps = block.qkv
                assert maps is not None
                counts = {"q": structure.n_heads, "k": structure.n_groups, "v": structure.n_groups}
                firsts = dict(zip(counts, np.cumsum([reader, *counts.values()]), strict=False))
                for name, kinds in kinds_by_map(structure, layer).items():
                    spans = {
                        kind: range(firsts[kind], firsts[kind] + counts[kind]) for kind in kinds
                    }
                    if self._any_ablated(spans.values()):
                        edits[norm] = self._keep_stream(norm)
                        edits[f"{name}.{layer}"] = self._edit_heads(layer, spans)
                reader += sum(counts.values())
                edits[f"z.{layer}"] = self._record_writer(f"z.{layer}", writer)
                writer += structure.n_heads
            else:
                if self._any_ablated([range(reader, reader + 1)]):
                    edits[norm] = self._keep_stream(norm)
                    part = self._edit_input(norm, block.attention_norm, reader)
                    edits[f"attn_in.{layer}"] = part
                reader += 1
                edits[f"attn.{layer}"] = self._record_writer(f"attn.{layer}", writer)
                writer += 1
            norm = f"mlp_read.{layer}"
            if self._any_ablated([range(reader, reader + 1)]):
                edits[norm] = self._keep_stream(norm)
                edits[f"mlp_in.{layer}"] = self._edit_input(norm, block.mlp_norm, reader)
            reader += 1
            edits[f"mlp.{layer}"] = self._record_writer(f"mlp.{layer}", writer)
            writer += 1
        last = len(graph.readers) - 1
        if self._any_ablated([range(last, last + 1)]):
            edits["final_read"] = lambda value: self._ablated_stream(value, last, last + 1)[0]
        return edits

    def _any_ablated(self, spans) -> bool:
        starts = self.instrumented.graph.edge_offsets
        return any(self.edge_mask[starts[s.start] : starts[s.stop]].any() for s in spans)

    def _record_writer(self, site: str, writer: int) -> Edit:
        """Record how far the writer's output is from the value that an ablated edge carries."""

        def record(value: Tensor) -> Tensor:
            if site.startswith("z."):
                layer = int(site.split(".")[1])
                added = head_outputs(self.instrumented.structure, layer, value)
                added = added.transpose(0, 1)
            else:
                added = value[:, None]
            writers = slice(writer, writer + added.shape[1])
            self.deltas[:, writers] = self.values[:, writers] - at_least_float32(added)
            return value

        return record

    def _keep_stream(self, site: str) -> Edit:
        def keep(value: Tensor) -> Tensor:
            if not self.in_norm:  # self._apply_norm calls norms on other streams
                self.streams[site] = value
            return value

        return keep

    def _ablated_stream(self, stream: Tensor, first: int, stop: int) -> Tensor:
        """(reader, row, position, d_model) inputs of readers that share their writers."""
        graph = self.instrumented.graph
        count = graph.n_upstream[first]
        edge_mask = self.edge_mask[graph.edge_offsets[first] : graph.edge_offsets[stop]].reshape(
            -1, count
        )
        # as_tensor warns of the read-only mask of a circuit.
        weights = torch.tensor(edge_mask, device=stream.device).to(self.deltas.dtype)
        shift = torch.einsum("hw,rwpd->hrpd", weights, self.deltas[:, :count])
        return stream + shift.to(stream.dtype)

    def _apply_norm(self, norm, stream: Tensor) -> Tensor:
        self.in_norm = True
        try:
            return norm(stream)
        finally:
            self.in_norm = False

    def _edit_heads(self, layer: int, spans: Mapping[str, range]) -> Edit:
        block = self.instrumented.structure.blocks[layer]
        maps = block.qkv
        assert maps is not None

        def change(value: Tensor) -> Tensor:
            stream = self.streams[f"attn_read.{layer}"]
            plain = self._apply_norm(block.attention_norm, stream)
            new = value.clone()
            for kind, span in spans.items():
                if not self._any_ablated([span]):
                    continue
                ablated = self._ablated_stream(stream, span.start, span.stop)
                shift = self._apply_norm(block.attention_norm, ablated) - plain
                columns = maps.columns[kind]
                weight = weight_matrix(maps.linears[kind])[columns]
                output_shift = torch.einsum("hrpd,hsd->rphs", shift, weight)
                new[..., columns.flatten()] += output_shift.flatten(2)
            return new

        return change

    def _edit_input(self, site: str, norm, reader: int) -> Edit:
        def change(value: Tensor) -> Tensor:
            ablated = self._ablated_stream(self.streams[site], reader, reader + 1)[0]
            return self._apply_norm(norm, ablated)

        return change
