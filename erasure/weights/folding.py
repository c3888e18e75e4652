"""Erasers written into the weights, where a map can take them up exactly.

A linear map takes up an eraser of its output or of its input, an embedding one of its
output. What a block leaves in the residual stream is a sum, which no single map gives:
there, ``stream_erasers`` erases every part of the sum, and that folds.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from capture.network.hooks import first_tensor
from capture.network.structure import find_blocks, output_head, own_head_
from erasure.concept.affine import AffineEraser
from erasure.weights.linear_maps import fold_embeddings_, fold_input_, fold_output_
from evidence.errors import InputError

# A folded model may differ from the hooked one by rounding: this many units in the
# last place of the largest output, or this share of what the erasers change.
MAX_ULPS, MAX_ERROR_SHARE = 200, 1e-3


class Place(Protocol):
    """Where a site's value is carried, as ``capture.network.sites.Place`` says it."""

    @property
    def module(self) -> nn.Module:
        """The module whose input or output carries the value."""
        ...

    @property
    def side(self) -> str:
        """Either "in" or "out"."""
        ...

    @property
    def part(self) -> slice | int | None:
        """Which of the features."""
        ...


class Places(Protocol):
    """A model's sites by name, as ``capture.network.sites.Sites`` has them."""

    def resolve(self, name: str) -> Place:
        """The place of a site."""
        ...


def stream_erasers(
    names: Iterable[str], eraser: AffineEraser
) -> dict[str, AffineEraser]:
    """The same eraser for the whole residual stream, at each part of its sum.

    The stream enters block 0 erased, and what attention and feed-forward parts add has
    its linear part alone applied; so at every depth, between a block's parts too, the
    stream is an erased one.

    Args:
        names: Every site of the model (``Sites.names``).
        eraser: For one site, of the stream's width.

    Returns:
        Site name to eraser, for ``patch`` (its ``transform``) and for ``fold_``.

    Raises:
        InputError: the sites are not a transformer's.
    """
    added = [name for name in names if name.split(".")[0] in ("attn", "mlp")]
    kinds = {name.split(".")[0] for name in added}
    if kinds != {"attn", "mlp"} or "embed" not in names:
        raise InputError(
            "this model has no residual stream to erase from",
            expected="sites embed, attn.L and mlp.L",
        )
    return {"embed": eraser} | {name: eraser.linear() for name in added}


def fold_(
    model: nn.Module,
    erasers: Mapping[str, AffineEraser],
    where: Places,
    inputs: Mapping[str, Any] | None = None,
) -> None:
    """Write erasers into the weights of ``model``, in place.

    Afterwards the model computes, without hooks, what it computed with
    ``patch(model, {name: eraser.transform})`` in evaluation mode. That is checked on a
    small batch; where it does not hold, the weights are put back.

    An output layer that shares its weights with the embedding is given its own.

    Args:
        model: The model.
        erasers: Site name to the eraser of one site.
        where: The model's sites.
        inputs: A small batch to check with, as keyword arguments of the model; by
            default random tokens.

    Raises:
        InputError: a site is the sum of several maps, or not next to a linear map; a
            map has no bias for the constant part; weights are quantised or shared; or
            the folded model differs from the hooked one. The model is as it was.
    """
    batch = _random_batch(model) if inputs is None else dict(inputs)
    places = {name: where.resolve(name) for name in erasers}
    for name, eraser in erasers.items():
        _check(model, name, places[name], eraser)
    plain = _first_output(model, batch)
    with erased_by_hooks((places[name], eraser) for name, eraser in erasers.items()):
        wanted = _first_output(model, batch)
    targets = {
        name: _targets(model, name, places[name], eraser)
        for name, eraser in erasers.items()
    }
    with _restored_on_error(model, [m for part in targets.values() for m in part]):
        for name, eraser in erasers.items():
            _fold_one(model, name, places[name], eraser, targets[name])
        got = _first_output(model, batch)
        effect = (wanted - plain).abs().max()
        rounding = MAX_ULPS * torch.finfo(got.dtype).eps * wanted.abs().max()
        gap = (got - wanted).abs().max()
        if not gap <= MAX_ERROR_SHARE * effect + rounding:
            raise InputError(
                "the folded model is not the hooked one",
                expected="maps that feed their site directly and are used once, in a "
                "model without norms in between",
                got=f"a difference of {gap:.1e} in outputs that the erasers change by "
                f"{effect:.1e}",
                fix="Use the erasers as hooks",
            )


@contextmanager
def erased_by_hooks(pairs: Iterable[tuple[Place, AffineEraser]]) -> Iterator[None]:
    """Erase at places while the block lasts; hooks go however it ends."""
    with ExitStack() as stack:
        for place, eraser in pairs:
            stack.callback(_hook(place, eraser).remove)
        yield


def _hook(place: Place, eraser: AffineEraser):
    def change(carried: Tensor) -> Tensor:
        if place.part is None:
            return eraser.transform(carried)
        changed = carried.clone()
        changed[..., place.part] = eraser.transform(carried[..., place.part])
        return changed

    def before(_module: nn.Module, args: tuple, named: dict[str, Any]):
        if args:
            return (change(args[0]), *args[1:]), named
        key = "hidden_states" if "hidden_states" in named else next(iter(named))
        return args, named | {key: change(named[key])}

    def after(_module: nn.Module, _args: tuple, output: Any):
        new = change(first_tensor(output))
        return new if isinstance(output, Tensor) else (new, *output[1:])

    if place.side == "in":
        return place.module.register_forward_pre_hook(before, with_kwargs=True)
    return place.module.register_forward_hook(after)


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
    blocks = _transformer_blocks(model)
    first = place.side == "in" and blocks[:1] == [place.module]
    if not first and any(place.module is block for block in blocks):
        raise InputError(
            f"{name} cannot be folded: it is the sum of what many maps add, and its "
            "parts are read before it",
            expected="a site that one linear map writes or reads",
            fix="Erase the whole stream (stream_erasers), or use the eraser as a hook",
        )


def _transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Transformer blocks; none in a list of plain maps, or where there is no list."""
    try:
        blocks = find_blocks(model)
    except InputError:
        return []
    return [] if isinstance(blocks[0], nn.Linear | Conv1D) else blocks


def _targets(
    model: nn.Module, name: str, place: Place, eraser: AffineEraser
) -> list[nn.Module]:
    """The modules whose weights take up the eraser."""
    if _transformer_blocks(model)[:1] == [place.module]:
        return _stream_embeddings(model, name, eraser)
    if place.side == "in" or isinstance(place.module, nn.Linear | Conv1D):
        return [place.module]
    # That a part of a block ends with its last map is checked by running.
    maps: list[nn.Module] = [
        m for m in place.module.modules() if isinstance(m, nn.Linear | Conv1D)
    ]
    if not maps:
        raise InputError(
            f"{name} cannot be folded: {type(place.module).__name__} holds no linear "
            "map",
            fix="Use the eraser as a hook",
        )
    return maps[-1:]


def _stream_embeddings(
    model: nn.Module, name: str, eraser: AffineEraser
) -> list[nn.Module]:
    """Every embedding of the stream outside the blocks, the tokens' first."""
    inside = {id(m) for block in _transformer_blocks(model) for m in block.modules()}
    ask = getattr(model, "get_input_embeddings", None)
    tokens = ask() if callable(ask) else None
    if not isinstance(tokens, nn.Embedding) or tokens.embedding_dim != eraser.width:
        raise InputError(
            f"{name} cannot be folded: no embedding of tokens has its width",
            expected=f"an embedding of width {eraser.width}",
            fix="Use the eraser as a hook",
        )
    others = [
        module
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        and id(module) not in inside
        and module is not tokens
        and module.embedding_dim == eraser.width
    ]
    return [tokens, *others]


def _fold_one(
    model: nn.Module,
    name: str,
    place: Place,
    eraser: AffineEraser,
    targets: list[nn.Module],
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
    """Give ``module`` weights of its own, of numbers that can be written."""
    weight = getattr(module, "weight", None)
    plain = isinstance(module, nn.Linear | Conv1D | nn.Embedding)
    if not plain or not isinstance(weight, nn.Parameter):
        raise InputError(
            f"{name} cannot be folded into {type(module).__name__}",
            expected="a plain linear map or embedding",
            fix="Merge adapters first, or use the eraser as a hook",
        )
    if not weight.is_floating_point():
        raise InputError(
            f"{name} cannot be folded into quantised weights",
            expected="floating-point weights",
            got=str(weight.dtype),
            fix="De-quantise first",
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
def _restored_on_error(
    model: nn.Module, targets: Iterable[nn.Module]
) -> Iterator[None]:
    """Put back what folding into ``targets`` may change, if the block fails."""
    head = output_head(model)
    some = {id(m): m for m in (*targets, *([head] if head is not None else []))}
    owners = [
        (module, key, parameter, parameter.detach().clone())
        for module in some.values()
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


def _random_batch(model: nn.Module) -> dict[str, Any]:
    """Random tokens, the same every time."""
    ask = getattr(model, "get_input_embeddings", None)
    table = ask() if callable(ask) else None
    if not isinstance(table, nn.Embedding):
        raise InputError(
            "it is not known what to run this model on, to check the folding",
            expected="a language model",
            got=type(model).__name__,
            fix="Give inputs: a small batch as keyword arguments",
        )
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(table.num_embeddings, (3, 12), generator=rng)
    return {"input_ids": ids.to(table.weight.device)}


def _first_output(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The model's first output in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(**batch)
    finally:
        for module, training in modes:
            module.training = training
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    state = getattr(output, "last_hidden_state", None)
    return state if isinstance(state, Tensor) else first_tensor(output)
