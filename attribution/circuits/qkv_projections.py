"""Query, key and value maps of an attention part, found and proved by one small pass.

Maps may be three or one; in one, queries, keys and values may come one after another
(GPT-2, Phi) or group by group (GPT-NeoX, Falcon). Which it is, the model says itself:
a first token can attend to nothing but itself, so each head's output there is the
value it read, and a query at one token moves its own head at that token alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.network.discovery.position_limit import position_limit
from capture.network.hooks import evaluation_mode, patch
from capture.network.sites import Place, Sites
from capture.network.structure import model_device
from evidence.seeds import torch_rng

# Two computations of one value may differ by rounding, relative to the largest.
REL_TOL = 1e-3
KINDS: tuple[str, ...] = ("q", "k", "v")


@dataclass(frozen=True)
class QkvProjections:
    """The three maps of one attention part.

    Attributes:
        names: "q", "k", "v" to the linear map's name inside the attention part.
        columns: The same to (head or group, size) indices into the map's output.
        linears: The same to the map itself.
        n_groups: Key and value heads.
    """

    names: Mapping[str, str]
    columns: Mapping[str, Tensor]
    linears: Mapping[str, nn.Module]
    n_groups: int

    def for_attention(self, attention: nn.Module) -> "QkvProjections":
        """The same maps in another block's attention part."""
        linears = {kind: attention.get_submodule(n) for kind, n in self.names.items()}
        return QkvProjections(self.names, self.columns, linears, self.n_groups)


def rows_close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are equal up to rounding, vector by vector."""
    if one.shape != other.shape:
        return False
    one, other, share = one.double(), other.double(), _relative_tolerance(other.dtype)
    apart = (one - other).norm(dim=-1)
    return bool((apart <= share * other.norm(dim=-1) + 1e-30).all())


def _relative_tolerance(dtype: torch.dtype) -> float:
    """How far apart two computations may be; half precision rounds coarsely."""
    return max(REL_TOL, 8 * torch.finfo(dtype).eps)


def small_input(model: nn.Module) -> dict[str, Tensor]:
    """A row of a few different tokens, as keyword arguments of the model."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embedding, "weight", torch.zeros(6)).shape[0]
    count = min(6, position_limit(model) or 6)
    return {"input_ids": torch.arange(count, device=model_device(model))[None] % size}


def weight_matrix(linear: nn.Module) -> Tensor:
    """The (output, input) matrix that a linear map applies, its bias left out.

    GPT-2's layers hold it transposed; an adapter or a quantised layer holds none, and
    is asked what it does to each unit vector.
    """
    weight = getattr(linear, "weight", None)
    if type(linear) is nn.Linear and isinstance(weight, Tensor):
        return weight.detach()
    if type(linear).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.detach().T
    parameter = next(linear.parameters())
    inputs = getattr(linear, "in_features", None)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    unit = torch.eye(int(inputs or 0), device=parameter.device, dtype=dtype)
    with torch.no_grad():
        return (linear(unit) - linear(torch.zeros_like(unit[:1]))).T


def find_qkv(
    model: nn.Module,
    attention: nn.Module,
    projection: nn.Module,
    n_heads: int,
    sites: Sites,
) -> tuple[QkvProjections | None, str]:
    """The maps of the first block's attention, or None and why not.

    Args:
        model: The model, run on a few tokens.
        attention: The first block's attention part.
        projection: Its output projection.
        n_heads: Query heads.
        sites: Sites of the model, ``z.0`` among them.
    """
    if n_heads == 0:
        return None, "the number of heads is not known"
    width = weight_matrix(projection).shape[1]
    tried = 0
    for each in _candidates(attention, projection, n_heads, width // n_heads):
        tried += 1
        if _verified(model, each, n_heads, sites):
            return each, ""
    if tried:
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
        kind: name
        for name in linears
        for kind in KINDS
        if name.split(".")[-1].startswith(kind)
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
        whole = torch.arange(heads * size).unflatten(0, (heads, size))
        in_turn = dict(zip(KINDS, whole.split([n_heads, groups, groups]), strict=True))
        each = n_heads // groups
        grouped = whole.unflatten(0, (groups, each + 2))
        by_group = {
            "q": grouped[:, :each].flatten(0, 1),
            "k": grouped[:, each],
            "v": grouped[:, each + 1],
        }
        for columns in (in_turn, by_group):
            names = dict.fromkeys(KINDS, name)
            yield QkvProjections(names, columns, dict.fromkeys(KINDS, linear), groups)


def _output_width(module: nn.Module) -> int:
    """Outputs of a linear map; 0 for anything else."""
    if type(module).__name__ == "Conv1D":
        return int(module.nf)  # pyright: ignore[reportArgumentType]
    return int(getattr(module, "out_features", 0) or 0)


def _verified(
    model: nn.Module, maps: QkvProjections, n_heads: int, places: Sites
) -> bool:
    """Whether values pass at the first token, and each head has its own columns."""
    extra = {f"{k}.0": Place(f"{k}.0", m, "out") for k, m in maps.linears.items()}
    where = Sites(places.places | extra, places.n_layers, None, n_heads, None)
    got: dict[str, Tensor] = {}

    rng = torch_rng(0, "projections")

    def tap(name: str):
        def keep(value: Tensor) -> Tensor:
            got[name] = value
            if name != "z.0":
                # Drawn at random: what a map gives may be too plain to tell, as in a
                # head that was pruned, and it is the code behind it that is asked.
                drawn = torch.randn(value.shape, generator=rng).to(value)
                got[name] = drawn.requires_grad_()
            return got[name]

        return keep

    distinct = {id(m): f"{k}.0" for k, m in maps.linears.items()}
    edits = {name: tap(name) for name in [*distinct.values(), "z.0"]}
    with (
        evaluation_mode(model),
        torch.enable_grad(),
        patch(model, edits, known_sites=where),
    ):
        model(**small_input(model), use_cache=False)
    read = {k: got[distinct[id(m)]] for k, m in maps.linears.items()}
    z = got["z.0"].unflatten(-1, (n_heads, -1))
    group = n_heads // maps.n_groups
    values = read["v"][0, 0][maps.columns["v"]]
    if not rows_close(z[0, 0], values.repeat_interleave(group, 0)):
        return False
    weights = torch.linspace(0.5, 1.5, z.shape[-1], device=z.device, dtype=z.dtype)
    for head in sorted({0, 1 % n_heads, n_heads - 1}):
        outputs = list({id(each): each for each in read.values()}.values())
        slopes = torch.autograd.grad(
            (z[0, -1, head] * weights).sum(),
            outputs,
            retain_graph=True,
            allow_unused=True,
        )
        by_id = {id(o): s for o, s in zip(outputs, slopes, strict=True)}
        moved: dict[str, Tensor] = {}
        for kind, output in read.items():
            slope = by_id[id(output)]
            if slope is None:
                return False
            moved[kind] = slope[0][:, maps.columns[kind]].abs().sum(-1)
        own = {"q": head, "k": head // group, "v": head // group}
        for kind, each in moved.items():
            others = torch.arange(each.shape[1], device=z.device) != own[kind]
            if each[:, others].any() or not each[-1, own[kind]] > 0:
                return False
        # An earlier query has no say at the last token; an earlier key has.
        if moved["q"][:-1].any() or not moved["k"][0, own["k"]] > 0:
            return False
    return True
