"""circuitkit's edge attribution, loaded alone from a folder, on the same token rows.

Its package imports much that ours does without; the modules that score edges need only
torch and TransformerLens, and are imported with empty packages around them.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from attribution.circuits.graph import EdgeGraph
from attribution.circuits.prompt_pairs import PromptPairs


class Peer:
    """A ``HookedTransformer`` with a GPT-2's weights, and circuitkit's scores on it.

    Args:
        folder: Where circuitkit's wheel was unpacked.
        model: Whose weights; rows must be of equal length.
        pairs: The pairs to score, by the difference of first-token logits.
    """

    def __init__(self, folder: Path, model: GPT2LMHeadModel, pairs: PromptPairs):
        self.graphs, self.attribute = _modules(folder)
        self.model = _hooked(model)
        start = pairs.clean.answer_start[0]
        clean, corrupt = (
            torch.tensor([ids[:start] for ids in rows.ids]) for rows in (pairs.clean, pairs.corrupt)
        )
        mask = torch.ones_like(clean)
        lengths = torch.full((len(pairs),), start)
        # Text goes in there; tokens come out, and these are the tokens.
        self.attribute.tokenize_batch_pair = lambda *args, **named: (
            clean,
            corrupt,
            mask,
            mask,
            lengths,
            start,
        )
        right = torch.tensor([ids[start] for ids in pairs.clean.ids])[:, None]
        wrong = torch.tensor(pairs.foils)[:, None]

        def metric(logits, clean_logits, lengths, label):
            last = logits[:, -1]
            return (last.gather(1, right) - last.gather(1, wrong)).sum()

        self.metric = metric
        self.data = [([""] * len(pairs), [""] * len(pairs), None)]
        self.graph = self.graphs.Graph.from_model(self.model)

    def run(self, steps: int) -> Any:
        """EAP-IG over inputs, in circuitkit's own table."""
        return self.attribute.get_scores_eap_ig(
            self.model, self.graph, self.data, self.metric, steps=steps, quiet=True
        )

    def scores(self, graph: EdgeGraph, steps: int) -> np.ndarray:
        """(edge,) the same in the order of our graph."""
        table = self.run(steps)
        found = np.zeros(graph.n_edges)
        for place, edge in enumerate(graph.edges):
            writer, reader = edge.split("->")
            kind, *rest = reader.split(".")
            node, part = _name(writer), kind if kind in "qkv" else None
            end = f"a{rest[0]}.h{rest[1]}" if part else _name(reader)
            row = self.graph.forward_index(self.graph.nodes[node], attn_slice=False)
            column = self.graph.backward_index(self.graph.nodes[end], qkv=part, attn_slice=False)
            found[place] = float(table[row, column])
        return found


def _name(node: str) -> str:
    kind, *rest = node.split(".")
    named = {"embed": "input", "logits": "logits", "mlp": f"m{rest[0]}" if rest else ""}
    return f"a{rest[0]}.h{rest[1]}" if kind == "head" else named[kind]


def _modules(folder: Path) -> tuple[Any, Any]:
    """Circuitkit's graph and attribution, without the packages around them."""
    for name in ("circuitkit", "circuitkit.backends", "circuitkit.backends.eap"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    evaluation: Any = types.ModuleType("circuitkit.backends.eap.evaluate")
    evaluation.evaluate_baseline = evaluation.evaluate_graph = None
    sys.modules[evaluation.__name__] = evaluation
    return (
        importlib.import_module("circuitkit.backends.eap.graph"),
        importlib.import_module("circuitkit.backends.eap.attribute"),
    )


def _hooked(model: GPT2LMHeadModel) -> Any:
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    config = model.config
    settings = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        act_fn="gelu_new",
        normalization_type="LN",
        eps=config.layer_norm_epsilon,
        device="cpu",
        use_attn_result=True,
        use_split_qkv_input=True,
        use_hook_mlp_in=True,
    )
    hooked = HookedTransformer(settings)
    hooked.load_state_dict(convert_gpt2_weights(model, settings), strict=False)
    return hooked.eval()
