"""Node and edge values of GPT-2-shaped weights at TransformerLens's hook points.

TransformerLens changes the process that imports it, so this one is run apart, as
``python -m tests.helpers.attribution_peers``; prints a JSON object of largest
differences, relative to the largest value.
"""

import copy
import json
import warnings

import numpy as np
import torch

from attribution.circuits.eap import EapMethod, score_edges
from attribution.circuits.forward_backward import run_forward, writer_outputs
from attribution.circuits.metrics import make_metric
from tests.helpers.model_families import tiny
from tests.helpers.wired_transformers import batch_of, random_pairs, subject_of


def bridged(model):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    # The bridge rewrites what it wraps, so it gets a copy.
    bridge = build_bridge_from_module(
        copy.deepcopy(model), "GPT2LMHeadModel", hf_config=model.config, tokenizer=None
    )
    bridge.set_use_attn_result(True)
    bridge.set_use_split_qkv_input(True)
    bridge.set_use_hook_mlp_in(True)
    return bridge


def writer_hooks(bridge, layers):
    """Hook points of the writers, in our order; heads in one."""
    names = ["blocks.0.hook_resid_pre"]
    for layer in range(layers):
        names += [f"blocks.{layer}.attn.hook_result", f"blocks.{layer}.hook_mlp_out"]
    return names


def values(bridge, rows, names):
    _, cache = bridge.run_with_cache(
        rows.input_ids, attention_mask=rows.attention_mask, names_filter=names
    )
    parts = []
    for name in names:
        value = cache[name]
        value = value if value.dim() == 4 else value[:, :, None]
        parts.append(value.permute(0, 2, 1, 3))
    return torch.cat(parts, 1)


def main() -> None:
    warnings.simplefilter("ignore")
    model, pairs = tiny("gpt2"), random_pairs()
    subject, batch = subject_of(model), batch_of(pairs)
    layers = subject.structure.n_layers
    bridge = bridged(model)
    names = writer_hooks(bridge, layers)
    theirs = [values(bridge, rows, names) for rows in (batch.clean, batch.corrupt)]
    clean = run_forward(subject, batch.clean, batch.metric_mask)
    ours = [
        writer_outputs(subject, run_forward(subject, rows, batch.metric_mask).by_site)
        for rows in (batch.clean, batch.corrupt)
    ]
    # Values at padding are nobody's business.
    mask = batch.token_mask[:, None, :, None]
    found = {
        "values": max(
            float(((a - b) * mask).abs().max() / b.abs().max())
            for a, b in zip(ours, theirs, strict=True)
        )
    }
    readers = {}
    for layer in range(layers):
        for kind in "qkv":
            readers[f"blocks.{layer}.hook_{kind}_input"] = f"{kind}.{layer}"
        readers[f"blocks.{layer}.hook_mlp_in"] = f"mlp.{layer}"
    readers[f"blocks.{layers - 1}.hook_resid_post"] = "logits"
    slopes = {}

    def keep(name):
        # The bridge has names of its own for some of these points.
        def backward(value, hook):
            slopes[name] = value.detach().clone()

        return backward

    metric = make_metric("logit_difference", batch, clean.logits)
    hooks = [(name, keep(name)) for name in readers]
    with bridge.hooks(bwd_hooks=hooks):
        logits = bridge(batch.clean.input_ids, attention_mask=batch.token_mask)
        metric(logits[batch.metric_mask]).sum().backward()
    delta = (theirs[1] - theirs[0]) * mask
    graph = subject.graph
    expected = np.zeros((len(pairs), graph.n_edges))
    for place, reader in enumerate(graph.readers):
        kind, *rest = reader.split(".")
        stem = reader if kind in ("mlp", "logits") else f"{kind}.{rest[0]}"
        slope = slopes[next(name for name, own in readers.items() if own == stem)]
        if slope.dim() == 4:
            slope = slope[:, :, int(rest[1])]
        before = delta[:, : graph.n_upstream[place]]
        expected[:, graph.edges_into(place)] = torch.einsum("rwpd,rpd->rw", before, slope)
    scores = score_edges(model, pairs, method=EapMethod("eap"))
    scale = np.abs(expected).max()
    found["edges"] = float(np.abs(scores.values - expected).max() / scale)
    found["largest"] = float(scale)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
