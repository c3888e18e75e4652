"""Find the query, key and value maps of an attention layer and verify them numerically.

The maps may be three or fused into one, with queries, keys and values in sequence (GPT-2, Phi) or
grouped by head (GPT-NeoX, Falcon). The layout is verified on a small forward pass: the first token
attends only to itself, so each head's output there equals its value; and a query affects only its
own head at its own token.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.network.discovery.modes import without_hooks
from capture.network.discovery.position_limit import position_limit
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import Place, Sites
from capture.network.structure import input_embedding, is_transposed, matrix_view, model_device
from evidence.seeds import torch_rng

# Relative tolerance for two computations of one value.
REL_TOL = 1e-3
KINDS: tuple[str, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class QkvProjections:
    """The query, key and value maps of one attention layer.

    Attributes:
        names: "q", "k", "v" to the linear map's name within the attention layer.
        columns: The same to (head or group, size) indices into the map's output.
        linears: The same to the map itself.
        n_groups: Number of key and value heads.
    """

    names: Mapping[str, str]
    columns: Mapping[str, Tensor]
    linears: Mapping[str, nn.Module]
    n_groups: int

    def for_attention(self, attention: nn.Module) -> "QkvProjections":
        """The same maps in another block's attention layer."""
        linears = {kind: attention.get_submodule(n) for kind, n in self.names.items()}
        return QkvProjections(self.names, self.columns, linears, self.n_groups)


def rows_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors of one shape agree up to rounding, vector by vector."""
    if actual.shape != expected.shape:
        return False
    actual, expected, tolerance = (
        actual.double(),
        expected.double(),
        _relative_tolerance(expected.dtype),
    )
    error = (actual - expected).norm(dim=-1)
    return bool((error <= tolerance * expected.norm(dim=-1) + 1e-30).all())


def _relative_tolerance(dtype: torch.dtype) -> float:
    """Tolerance for two computations of one value; half precision needs more."""
    return max(REL_TOL, 8 * torch.finfo(dtype).eps)


def small_input(model: nn.Module) -> dict[str, Tensor]:
    """A row of a few different tokens, as keyword arguments of the model."""
    size = getattr(input_embedding(model), "weight", torch.zeros(6)).shape[0]
    count = min(6, position_limit(model) or 6)
    return {"input_ids": torch.arange(count, device=model_device(model))[None] % size}


def weight_matrix(linear: nn.Module) -> Tensor:
    """The (output, input) matrix of a linear map, without its bias.

    Conv1D stores it transposed. Adapters and quantized layers are evaluated on unit vectors.
    """
    weight = getattr(linear, "weight", None)
    plain = type(linear) is nn.Linear or is_transposed(linear)
    if plain and isinstance(weight, Tensor):
        return matrix_view(linear).detach()
    parameter = next(linear.parameters())
    inputs = getattr(linear, "in_features", None)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    unit = torch.eye(int(inputs or 0), device=parameter.device, dtype=dtype)
    # The map's own hooks may have asked for the matrix.
    with torch.no_grad(), without_hooks(linear):
        return (linear(unit) - linear(torch.zeros_like(unit[:1]))).T


def find_qkv(
    model: nn.Module, attention: nn.Module, projection: nn.Module, n_heads: int, sites: Sites
) -> tuple[QkvProjections | None, str]:
    """The QKV maps of the first block's attention layer, or None and the reason.

    Args:
        model: Run on a few tokens.
        attention: The first block's attention layer.
        projection: Its output projection.
        n_heads: Number of query heads.
        sites: Sites of the model, including ``z.0``.
    """
    if n_heads == 0:
        return None, "the number of heads is not known"
    width = weight_matrix(projection).shape[1]
    n_candidates = 0
    for candidate in _candidates(attention, projection, n_heads, width // n_heads):
        n_candidates += 1
        if _verified(model, candidate, n_heads, sites):
            return candidate, ""
    if n_candidates:
        return None, "heads do not read separate queries, keys and values"
    return None, "no query, key and value maps were found in its attention"


def _candidates(
    attention: nn.Module, projection: nn.Module, n_heads: int, size: int
) -> Iterator[QkvProjections]:
    linears = {
        name: module
        for name, module in attention.named_modules()
        if module is not projection and _output_width(module)
    }
    by_kind = {
        kind: name for name in linears for kind in KINDS if name.split(".")[-1].startswith(kind)
    }
    if len(set(by_kind.values())) == 3:
        outputs = [_output_width(linears[by_kind[kind]]) for kind in KINDS]
        groups = outputs[1] // size
        if groups and outputs == [n_heads * size, groups * size, groups * size]:
            columns = {
                kind: torch.arange(count).unflatten(0, (-1, size))
                for kind, count in zip(KINDS, outputs, strict=True)
            }
            chosen = {kind: linears[by_kind[kind]] for kind in KINDS}
            yield QkvProjections(by_kind, columns, chosen, groups)
    for name, linear in linears.items():
        heads = _output_width(linear) // size
        groups = (heads - n_heads) // 2
        if groups < 1 or n_heads % groups or n_heads + 2 * groups != heads:
            continue
        columns_by_head = torch.arange(heads * size).unflatten(0, (heads, size))
        sequential = dict(zip(KINDS, columns_by_head.split([n_heads, groups, groups]), strict=True))
        queries_per_group = n_heads // groups
        grouped = columns_by_head.unflatten(0, (groups, queries_per_group + 2))
        interleaved = {
            "q": grouped[:, :queries_per_group].flatten(0, 1),
            "k": grouped[:, queries_per_group],
            "v": grouped[:, queries_per_group + 1],
        }
        for columns in (sequential, interleaved):
            names = dict.fromkeys(KINDS, name)
            yield QkvProjections(names, columns, dict.fromkeys(KINDS, linear), groups)


def _output_width(module: nn.Module) -> int:
    """Output width of a linear map; 0 for any other module."""
    if is_transposed(module):
        return int(module.nf)  # pyright: ignore[reportArgumentType]
    return int(getattr(module, "out_features", 0) or 0)


def _verified(model: nn.Module, maps: QkvProjections, n_heads: int, sites: Sites) -> bool:
    """Whether the maps and columns are right: values at the first token, heads by gradient."""
    extra = {f"{k}.0": Place(f"{k}.0", m, "out") for k, m in maps.linears.items()}
    where = Sites(sites.places | extra, sites.n_layers, None, n_heads, None)
    recorded: dict[str, Tensor] = {}

    rng = torch_rng(0, "projections")

    def tap(name: str):
        def keep(value: Tensor) -> Tensor:
            recorded[name] = value
            if name != "z.0":
                # Use random outputs: the outputs of a pruned head would be constant, and
                # only the code after the map is under test.
                drawn = torch.randn(value.shape, generator=rng).to(value)
                recorded[name] = drawn.requires_grad_()
            return recorded[name]

        return keep

    distinct = {id(m): f"{k}.0" for k, m in maps.linears.items()}
    edits = {name: tap(name) for name in [*distinct.values(), "z.0"]}
    with evaluation_mode(model), torch.enable_grad(), patch(model, edits, known_sites=where):
        model(**small_input(model), use_cache=False)
    outputs_by_kind = {k: recorded[distinct[id(m)]] for k, m in maps.linears.items()}
    z = recorded["z.0"].unflatten(-1, (n_heads, -1))
    group_size = n_heads // maps.n_groups
    values = outputs_by_kind["v"][0, 0][maps.columns["v"]]
    if not rows_close(z[0, 0], values.repeat_interleave(group_size, 0)):
        return False
    weights = torch.linspace(0.5, 1.5, z.shape[-1], device=z.device, dtype=z.dtype)
    for head in sorted({0, 1 % n_heads, n_heads - 1}):
        outputs = list({id(by_head): by_head for by_head in outputs_by_kind.values()}.values())
        gradients = torch.autograd.grad(
            (z[0, -1, head] * weights).sum(), outputs, retain_graph=True, allow_unused=True
        )
        by_id = {id(o): s for o, s in zip(outputs, gradients, strict=True)}
        influence: dict[str, Tensor] = {}
        for kind, output in outputs_by_kind.items():
            gradient = by_id[id(output)]
            if gradient is None:
                return False
            influence[kind] = gradient[0][:, maps.columns[kind]].abs().sum(-1)
        own_head = {"q": head, "k": head // group_size, "v": head // group_size}
        for kind, by_head in influence.items():
            is_other = torch.arange(by_head.shape[1], device=z.device) != own_head[kind]
            if by_head[:, is_other].any() or not by_head[-1, own_head[kind]] > 0:
                return False
        # The last token depends on earlier keys but on no earlier query.
        if influence["q"][:-1].any() or not influence["k"][0, own_head["k"]] > 0:
            return False
    return True
