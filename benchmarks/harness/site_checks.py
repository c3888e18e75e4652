"""Whether the sites of a model are what they say, checked apart from how they were found.

The stream is compared with the library's own hidden states, the step of the stream with what is
recorded at the sites, once as it is and once with a part removed, and the logits with the output.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from capture.network.contributions import CONTRIBUTIONS
from capture.network.hooks import patch, record
from capture.network.sites import Sites
from capture.network.structure import attention_of

ROWS, LENGTH = 2, 7
TOLERANCE = 2e-4
"""Of errors, relative to the size of what is compared."""


def faults(model: nn.Module, sites: Sites, depth: int | None) -> list[str]:
    """What is wrong with the sites; empty if all of them are right.

    Args:
        model: A causal language model.
        sites: As found.
        depth: Number of blocks by the configuration; None if it states none.
    """
    found = []
    if depth is not None and sites.n_layers != depth:
        found.append(f"{sites.n_layers} blocks, and the configuration states {depth}")
    stream = ["embed", *sites.of("resid")]
    added = [name for kind in CONTRIBUTIONS for name in sites.of(kind)]
    ends = [name for name in ("logits",) if name in sites.names]
    with torch.no_grad():
        output, got = _run(model, sites, [*stream, *added, *ends], hidden=True)
        found += _stream_faults(got, stream, output.hidden_states, sites.n_layers)
        if added:
            found += _step_faults(model, sites, got, stream, added)
        if ends and not close(got["logits"], output.logits):
            found.append("logits are not what the model returns")
        if ends:
            found += _logit_faults(model, sites, output.logits)
        found += _head_faults(model, sites)
    return found


def is_normed(model: nn.Module, sites: Sites) -> bool:
    """Whether the stream is normed after each addition, so that its step is no sum."""
    added = [name for kind in CONTRIBUTIONS for name in sites.of(kind)]
    with torch.no_grad():
        _, got = _run(model, sites, ["embed", "resid.0", *added])
    parts = [got[name] for name in added if name.endswith(".0")]
    return bool(parts) and not close(got["resid.0"] - got["embed"], torch.stack(parts).sum(0))


def inputs(model: nn.Module) -> dict[str, Any]:
    """Two rows of token ids."""
    table = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    size = table.num_embeddings
    ids = torch.randint(5, size - 3, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def close(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two values agree, relative to the size of the second."""
    if first.shape != second.shape:
        return False
    return bool((first - second).norm() <= tolerance * second.norm() + 1e-12)


def _run(
    model: nn.Module, sites: Sites, names: Sequence[str], hidden: bool = False
) -> tuple[Any, dict[str, Tensor]]:
    with record(model, names, known_sites=sites) as got:
        output = model(**inputs(model), output_hidden_states=hidden)
    return output, got


def _stream_faults(
    got: dict[str, Tensor], stream: list[str], states: Any, n_layers: int
) -> list[str]:
    if states is None:
        return []
    if len(states) not in (n_layers, n_layers + 1):
        return [f"{n_layers} blocks, and the library gives {len(states)} hidden states"]
    # The last one is taken after the final norm in most families. Some give no embedding.
    faults = [
        [
            f"{name} is not the library's hidden state"
            for name, state in zip(shifted[:-1], states, strict=False)
            if not close(got[name], state)
        ]
        for shifted in (stream, stream[1:])
    ]
    return min(faults, key=len)


def _step_faults(
    model: nn.Module, sites: Sites, got: dict[str, Tensor], stream: list[str], added: list[str]
) -> list[str]:
    found = []
    normed = is_normed(model, sites)
    if normed:
        return _normed_faults(model, sites, stream, added)
    if not _is_step(got, stream, added):
        found.append("what the parts add is not the step of the stream")
    for name in added:
        with patch(model, {name: torch.zeros_like}, known_sites=sites):
            _, now = _run(model, sites, [*stream, *added])
        if float(now[name].abs().max()) > 0 or not _is_step(now, stream, added):
            found.append(f"with {name} removed, the stream is not the sum of the rest")
        layer = int(name.split(".")[1])
        if close(now[stream[layer + 1]], got[stream[layer + 1]], 1e-6):
            found.append(f"removing {name} changes nothing")
    return found


def _is_step(got: dict[str, Tensor], stream: list[str], added: list[str]) -> bool:
    for layer, (before, after) in enumerate(pairwise(stream)):
        total = sum(got[name] for name in added if name.split(".")[1] == str(layer))
        if not isinstance(total, Tensor) or not close(got[after] - got[before], total):
            return False
    return True


def _normed_faults(
    model: nn.Module, sites: Sites, stream: list[str], added: list[str]
) -> list[str]:
    """What is wrong where a norm follows each addition: a norm reads the sum at each site."""
    found = []
    for name in added:
        layer = int(name.split(".")[1])
        block = sites.places[stream[layer + 1]].module
        for edits in ({}, {name: torch.zeros_like}):
            with patch(model, edits, known_sites=sites):
                read, got = _reads(model, block, [stream[layer], *added], sites)
            kinds = [each for each in added if each.split(".")[1] == str(layer)]
            first = got[stream[layer]] + got[kinds[0]]
            sums = [first]
            if name != kinds[0]:
                sums = [v + got[name] for _, v in read if v.shape == got[name].shape]
            if not any(close(value, total) for total in sums for value, _ in read):
                found.append(f"no norm reads the stream with {name} added")
    return found


def _reads(
    model: nn.Module, block: nn.Module, names: list[str], sites: Sites
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Inputs and outputs of the modules of a block that have the shape of the stream."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            if args[0].shape == output.shape:
                seen.append((args[0].clone(), output.clone()))

    handles = [module.register_forward_hook(note) for module in block.modules()]
    try:
        _, got = _run(model, sites, names)
    finally:
        for handle in handles:
            handle.remove()
    return seen, got


def _logit_faults(model: nn.Module, sites: Sites, logits: Tensor) -> list[str]:
    with patch(model, {"logits": lambda value: value * 0.5}, known_sites=sites):
        output, _ = _run(model, sites, ["embed"])
    if close(output.logits, logits * 0.5):
        return []
    return ["an edit of the logits is not what the model returns then"]


def _first(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output[0]).clone()


def _head_faults(model: nn.Module, sites: Sites) -> list[str]:
    """Heads of block 0 add up: removing two changes attention by the sum of the changes."""
    names = [name for name in sites.of("head") if name.startswith("head.")][: sites.n_heads]
    if len(names) < 2:
        return []
    layer = names[0].split(".")[1]
    whole = attention_of(sites.places[f"resid.{layer}"].module)
    if whole is None:
        return ["heads in a block without attention"]
    # A norm of the contribution is no sum over heads; what attention gives before it is.
    added = sites.places.get(f"attn.{layer}")
    if added is not None and any(added.module is module for module in whole.modules()):
        whole = added.module
    changes = []
    plain = None
    for removed in ((), names[:1], names[1:2], names[:2]):
        edits = {name: torch.zeros_like for name in removed}
        kept: list[Tensor] = []
        with whole.register_forward_hook(lambda m, a, o, kept=kept: kept.append(_first(o))):
            with patch(model, edits, known_sites=sites):
                _run(model, sites, ["embed"])
        plain = kept[0] if plain is None else plain
        changes.append(kept[0] - plain)
    _, one, other, both = changes
    if not close(one + other, both, 1e-3):
        return ["attention does not change by the sum over heads"]
    kind = next((n for n in sites.of("attn") if n.endswith(f".{layer}")), None)
    if kind is None:
        return []
    everything = [n for n in sites.of("head") if n.split(".")[1] == layer]
    with patch(model, {n: torch.zeros_like for n in everything}, known_sites=sites):
        _, got = _run(model, sites, [kind])
    value = got[kind]
    if not close(value, value[:1, :1].expand_as(value), 1e-4):
        return ["attention still says something with all heads removed"]
    return []
