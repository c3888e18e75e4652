"""Fold erasers into the weights of a model, exactly.

A linear map can absorb an eraser of its output or of its input, an embedding one of its output. The
residual stream after a block is a sum that no single map writes; ``stream_erasers`` erases every
summand instead, and those can be folded.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from capture.network.contributions import CONTRIBUTIONS
from capture.network.hooks import evaluation_mode, first_tensor, patch
from capture.network.model_inputs import changes_weights
from capture.network.sites import Place, Sites
from capture.network.structure import (
    find_blocks,
    input_embedding,
    is_linear_map,
    output_head,
    own_head_,
)
from erasure.concept.affine import AffineEraser
from erasure.weights.linear_maps import fold_embeddings_, fold_input_, fold_output_
from evidence.errors import InputError

# Tolerance between the folded and the hooked model: units in the last place of the
# largest output, plus a share of the change that the erasers make.
MAX_ULPS, MAX_ERROR_SHARE = 200, 1e-3


def stream_erasers(names: Iterable[str], eraser: AffineEraser) -> dict[str, AffineEraser]:
    """Erasers of every summand of the residual stream, equivalent to erasing the whole stream.

    The embedding is erased with the affine map and the outputs of attention and MLP with its linear
    part, so the stream is erased at every depth, within blocks too.

    Args:
        names: Every site of the model (``Sites.names``).
        eraser: For one site, of the stream's width.

    Returns:
        Site name to eraser, for ``patch`` (its ``transform``) and for ``fold_``.

    Raises:
        InputError: The sites are not a transformer's.

    Examples:
        >>> eraser = exhume.Leace().fit(states.site("resid.1"), cities == "Lisbon").eraser_
        >>> sorted(exhume.stream_erasers(exhume.find_sites(model).names, eraser))
        ['attn.0', 'attn.1', 'embed', 'mlp.0', 'mlp.1']
    """
    names = list(names)
    added = [name for name in names if name.split(".")[0] in CONTRIBUTIONS]
    blocks, layers = (
        {name.split(".")[1] for name in each}
        for each in ([name for name in names if name.startswith("resid.")], added)
    )
    if not added or blocks != layers or "embed" not in names:
        raise InputError(
            "this model has no residual stream to erase from",
            expected="sites embed, attn.L and mlp.L",
        )
    return {"embed": eraser} | {name: eraser.linear() for name in added}


@changes_weights
def fold_(
    model: nn.Module,
    erasers: Mapping[str, AffineEraser],
    where: Sites,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Fold erasers into the weights of ``model``, in place.

    The folded model computes, without hooks, what the model computes with ``patch(model, {name:
    eraser.transform})`` in evaluation mode. This is verified on a small batch; if it does not hold,
    the weights are restored. An output layer that shares its weights with the embedding gets its
    own copy.

    Args:
        erasers: Site name to the eraser of one site.
        where: The model's sites.
        inputs: A small batch for verification, as keyword arguments of the model; by default random
            tokens.

    Raises:
        InputError: A site is the sum of several maps or not adjacent to a linear map, a map lacks a
            bias for the constant part, weights are quantized or shared, or the folded model differs
            from the hooked one. The model is unchanged then.

    Examples:
        >>> erased = checkpoint.load()
        >>> names = exhume.capture_activations(model, rows, ["embed"], positions=1).site("embed")
        >>> eraser = exhume.Leace(tolerance=0.5).fit(names, cities).eraser_
        >>> exhume.fold_(erased, {"embed": eraser}, exhume.find_sites(erased))
        >>> after = exhume.capture_activations(erased, rows, ["embed"], positions=1).site("embed")
        >>> np.allclose(after, eraser.transform(names), atol=1e-4)
        True
    """
    batch = _random_batch(model) if inputs is None else dict(inputs)
    places = {name: where.resolve(name) for name in erasers}
    for name, eraser in erasers.items():
        _check(model, name, places[name], eraser)
    plain = _first_output(model, batch)
    edits = {name: eraser.transform for name, eraser in erasers.items()}
    with patch(model, edits, known_sites=where):
        hooked = _first_output(model, batch)
    targets = {
        name: _targets(model, name, places[name], eraser) for name, eraser in erasers.items()
    }
    with _restored_on_error(model, [m for part in targets.values() for m in part]):
        for name, eraser in erasers.items():
            _fold_one(model, name, places[name], eraser, targets[name])
        folded = _first_output(model, batch)
        effect = (hooked - plain).abs().max()
        rounding = MAX_ULPS * torch.finfo(folded.dtype).eps * hooked.abs().max()
        gap = (folded - hooked).abs().max()
        if not gap <= MAX_ERROR_SHARE * effect + rounding:
            raise InputError(
                "the folded model differs from the hooked one",
                expected="maps that feed their site directly and are used once, in a "
                "model without norms in between",
                got=f"a difference of {gap:.1e} in outputs that the erasers change by {effect:.1e}",
                fix="Use the erasers as hooks",
            )


def _check(model: nn.Module, name: str, place: Place, eraser: AffineEraser) -> None:
    if not eraser.single_site:
        raise InputError(
            f"the eraser for {name} is of several sites",
            expected="an eraser of one site",
            fix="Take eraser.at(number)",
        )
    if isinstance(place.part, int):
        raise InputError(
            f"{name} cannot be folded: its module keeps heads on an axis of their own",
            fix="Use the eraser as a hook",
        )
    blocks = _blocks(model)
    first = place.side == "in" and blocks[:1] == [place.module]
    if not first and any(place.module is block for block in blocks):
        raise InputError(
            f"{name} cannot be folded: it is the sum of what many maps add, and its "
            "parts are read before it",
            expected="a site that one linear map writes or reads",
            fix="Erase the whole stream (stream_erasers), or use the eraser as a hook",
        )


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The model's blocks; empty if it has no list of blocks."""
    try:
        return find_blocks(model)
    except InputError:
        return []


def _targets(model: nn.Module, name: str, place: Place, eraser: AffineEraser) -> list[nn.Module]:
    """The modules whose weights absorb the eraser."""
    if _blocks(model)[:1] == [place.module]:
        return _stream_embeddings(model, name, eraser)
    if place.side == "in" or is_linear_map(place.module):
        return [place.module]
    # fold_ verifies that the component ends with its last linear map.
    maps: list[nn.Module] = [m for m in place.module.modules() if is_linear_map(m)]
    if not maps:
        raise InputError(
            f"{name} cannot be folded: {type(place.module).__name__} holds no linear map",
            fix="Use the eraser as a hook",
        )
    return maps[-1:]


def _stream_embeddings(model: nn.Module, name: str, eraser: AffineEraser) -> list[nn.Module]:
    """All embeddings of the stream's width outside the blocks, the token embedding first."""
    inside = {id(m) for block in _blocks(model) for m in block.modules()}
    tokens = input_embedding(model)
    if not isinstance(tokens, nn.Embedding) or tokens.embedding_dim != eraser.width:
        raise InputError(
            f"{name} cannot be folded: no embedding of tokens has its width",
            expected=f"an embedding of width {eraser.width}",
            fix="Use the eraser as a hook",
        )
    positional = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and id(module) not in inside
        and module is not tokens
        and module.embedding_dim == eraser.width
    ]
    return [tokens, *positional]


def _fold_one(
    model: nn.Module, name: str, place: Place, eraser: AffineEraser, targets: list[nn.Module]
) -> None:
    for target in targets:
        untie_weights_(model, target, name)
    if isinstance(targets[0], nn.Embedding):
        tables = [each for each in targets if isinstance(each, nn.Embedding)]
        fold_embeddings_(tables, eraser)
    elif place.side == "out":
        fold_output_(targets[0], eraser, name)
    else:
        part = place.part if isinstance(place.part, slice) else slice(None)
        fold_input_(targets[0], eraser, name, part)


def untie_weights_(model: nn.Module, module: nn.Module, name: str) -> None:
    """Give ``module`` its own floating-point weights."""
    weight = getattr(module, "weight", None)
    plain = is_linear_map(module) or isinstance(module, nn.Embedding)
    if not plain or not isinstance(weight, nn.Parameter):
        raise InputError(
            f"{name} cannot be folded into {type(module).__name__}",
            expected="a plain linear map or embedding",
            fix="Merge adapters first, or use the eraser as a hook",
        )
    if not weight.is_floating_point():
        raise InputError(
            f"{name} cannot be folded into quantized weights",
            expected="floating-point weights",
            got=str(weight.dtype),
            fix="Dequantize first",
        )
    owners = [m for m in model.modules() if getattr(m, "weight", None) is weight]
    if len(owners) > 1 and any(owner is output_head(model) for owner in owners):
        own_head_(model)
        owners = [m for m in owners if getattr(m, "weight", None) is weight]
    if len(owners) > 1:
        raise InputError(
            f"{name} cannot be folded: its weights are shared by {len(owners)} modules",
            fix="Use the eraser as a hook",
        )


@contextmanager
def _restored_on_error(model: nn.Module, targets: Iterable[nn.Module]) -> Iterator[None]:
    """Restore the parameters that folding may change if the context fails."""
    head = output_head(model)
    modules = {id(m): m for m in (*targets, *([head] if head is not None else []))}
    owners = [
        (module, key, parameter, parameter.detach().clone())
        for module in modules.values()
        for key, parameter in module._parameters.items()
        if parameter is not None
    ]
    config = getattr(model, "config", None)
    tied = getattr(config, "tie_word_embeddings", None)
    try:
        yield
    except BaseException:
        for module, key, parameter, value in owners:
            setattr(module, key, parameter)
            parameter.data.copy_(value)
        if config is not None and tied is not None:
            config.tie_word_embeddings = tied
        raise


def _random_batch(model: nn.Module) -> dict[str, Tensor]:
    """The same random tokens on every call."""
    table = input_embedding(model)
    if not isinstance(table, nn.Embedding):
        raise InputError(
            "no input is known to verify the folding with",
            expected="a language model",
            got=type(model).__name__,
            fix="Give inputs: a small batch as keyword arguments",
        )
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(table.num_embeddings, (3, 12), generator=rng)
    return {"input_ids": ids.to(table.weight.device)}


def _first_output(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The model's logits, last hidden state or first output, in evaluation mode."""
    with torch.no_grad(), evaluation_mode(model):
        output = model(**batch)
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    state = getattr(output, "last_hidden_state", None)
    return state if isinstance(state, Tensor) else first_tensor(output)
