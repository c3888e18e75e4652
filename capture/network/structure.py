"""Parts of a causal language model, found by how it is built rather than by name."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.data.sequences import Padded
from evidence.errors import InputError
from evidence.seeds import stage_seed


class _Stop(Exception):
    """Ends a forward pass once the states that were asked for are there."""


def first_tensor(output: object) -> Tensor:
    """The hidden states in a block's output, a tensor or a tuple that starts with it.

    Raises:
        InputError: the output holds no tensor first.
    """
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise InputError(
            "a module's output is not hidden states",
            expected="a tensor, or a tuple starting with one",
            got=type(first).__name__,
        )
    return first


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks in depth order: the one list of like modules.

    In a network of images the longest such list, whatever it lies in.

    Raises:
        InputError: the model holds no such list, or several that may be meant.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise _no_blocks(model, "an encoder-decoder model")
    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(True for _ in module.parameters())
    ]
    if any(isinstance(module, nn.Embedding) for module in model.modules()):
        # Experts and the like are lists within blocks.
        inner = {id(m) for each in lists for m in each.modules() if m is not each}
        lists = [each for each in lists if id(each) not in inner]
        if any(len({type(child) for child in each}) > 1 for each in lists):
            raise _no_blocks(model, "blocks of several classes")
        if len(lists) > 1:
            raise _no_blocks(model, f"{len(lists)} lists of blocks")
    alike = [list(e) for e in lists if len({type(child) for child in e}) == 1]
    if not alike:
        raise _no_blocks(model, type(model).__name__)
    chosen = max(alike, key=lambda blocks: (len(blocks), _size(blocks)))
    if sum(type(blocks[0]) is type(chosen[0]) for blocks in alike) > 1:
        raise _no_blocks(model, f"several lists of {type(chosen[0]).__name__}")
    return chosen


def _size(modules: list[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _no_blocks(model: nn.Module, got: str) -> InputError:
    return InputError(
        f"no transformer blocks were found in {type(model).__name__}",
        expected="one module list of blocks of one class",
        got=got,
    )


def down_projection(block: nn.Module) -> tuple[str, nn.Module]:
    """Name and module of the matrix that ends a block's MLP.

    It is the last module of the block that owns a matrix: attention comes before
    the MLP in every causal family, and within the MLP the way back is last.

    Raises:
        InputError: the block owns no matrix, or that one does not lead back to the
            stream, as the router of a mixture of experts.
    """
    found = [
        (name, module)
        for name, module in block.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
        and module.weight.ndim == 2  # pyright: ignore[reportCallIssue]
    ]
    widths = {p.shape[0] for n, p in block.named_parameters() if _of_norm(n, p)}
    if not found or (widths and _outputs(found[-1][1]) not in widths):
        raise InputError(
            "a block has no down-projection",
            expected="a module with a 2-D weight that leads back to the stream, the "
            "last of the block",
            got=type(block).__name__,
        )
    return found[-1]


def _outputs(module: nn.Module) -> int:
    weight: Tensor = module.weight  # pyright: ignore[reportAssignmentType]
    return int(weight.shape[type(module).__name__ == "Conv1D"])


def _of_norm(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 1 and name.endswith("norm.weight")


def output_head(model: nn.Module) -> nn.Module | None:
    """The module that maps hidden states to logits, where the model names one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def own_head_(model: nn.Module) -> nn.Module:
    """The output head, given weights of its own where it shared the embedding's.

    Training a shared head would train the embedding as well. The configuration is
    told, so that the model is saved and loaded with two matrices.

    Raises:
        InputError: the model names no output head.
    """
    head = output_head(model)
    if head is None:
        raise InputError(
            "the model has no output head to train",
            expected="a causal language model",
            got=type(model).__name__,
            fix="Train the last block alone",
        )
    getter = getattr(model, "get_input_embeddings", None)
    embedding = getter() if callable(getter) else None
    shared = getattr(embedding, "weight", None)
    if shared is not None and getattr(head, "weight", None) is shared:
        head.weight = nn.Parameter(shared.detach().clone())
        config = getattr(model, "config", None)
        if config is not None:
            config.tie_word_embeddings = False
    return head


def blocks_and_after(model: nn.Module, count: int) -> list[nn.Module]:
    """The last ``count`` blocks and all that follows them: the last norm, the head.

    The head is given weights of its own where it shared the embedding's.

    Raises:
        InputError: the model has fewer blocks.
    """
    blocks = find_blocks(model)
    if count > len(blocks):
        raise InputError(
            "the model has fewer blocks than are to be trained",
            expected=f"at most {len(blocks)}",
            got=str(count),
        )
    head = own_head_(model)
    modules = list(model.modules())
    last = max(modules.index(inner) for inner in blocks[-1].modules())
    after = [
        module
        for module in modules[last + 1 :]
        if module is not head and not list(module.children())
    ]
    return [*blocks[-count:], *after, head]


def random_like(model: nn.Module, seed: int) -> nn.Module:
    """A model of the same configuration whose weights were never trained.

    Raises:
        InputError: the model cannot be made anew from a configuration.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise InputError(
            "this model cannot be made anew with random weights",
            expected="a Hugging Face model, with its config",
            got=type(model).__name__,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "random weights"))
        fresh = type(model)(config)
    parameter = next(model.parameters())
    return fresh.to(device=parameter.device, dtype=parameter.dtype).eval()


def states_at(model: nn.Module, module: nn.Module, batch: Padded) -> Tensor:
    """Output of ``module``, (row, position, width); the pass stops there."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        seen.append(first_tensor(output))
        raise _Stop

    handle = module.register_forward_hook(keep)
    try:
        model(**batch.model_inputs, use_cache=False)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not seen:
        raise InputError(
            "the chosen module does not take part in the forward pass",
            got=type(module).__name__,
        )
    return seen[0]


@dataclass(frozen=True)
class LogitReader:
    """Logits at chosen positions only, which is what losses on answers need.

    A vocabulary of 50,000 makes the logits of a full batch the largest tensor of a
    training step by far. Where running the model's body and applying its head gives
    the model's own logits (checked on one row when the reader is made), only the
    chosen positions go through the head; otherwise all logits are computed.
    """

    model: nn.Module
    body: nn.Module | None
    head: Callable[[Tensor], Tensor] | None

    def __call__(self, batch: Padded, where: Tensor) -> Tensor:
        """Logits, (chosen, vocabulary), where ``where`` (row, position) is True."""
        inputs = batch.model_inputs
        if self.body is None or self.head is None:
            return self.model(**inputs, use_cache=False).logits[where]
        hidden = self.body(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[where])


def logit_reader(model: nn.Module, example: Padded) -> LogitReader:
    """A reader for ``model``; ``example`` is a small batch to check the split on."""
    head = output_head(model)
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    plain = LogitReader(model, None, None)
    if head is None or not isinstance(body, nn.Module):
        return plain
    split = LogitReader(model, body, head)
    where = example.attention_mask.bool()
    with torch.no_grad():
        try:
            short, full = split(example, where), plain(example, where)
        except (TypeError, AttributeError, RuntimeError):
            return plain
    if short.shape != full.shape:
        return plain
    scale = full.abs().max().clamp(min=1.0)
    same = (short - full).abs().max() <= 1e-4 * scale
    return split if bool(same) else plain


# Names of a module that is the whole feed-forward part of a block.
FEED_FORWARD = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
# Arguments of blocks that pass a recurrent state from token to token.
RECURRENT_STATES = ("state", "cache_params")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)


@dataclass(frozen=True)
class Transformer:
    """The parts of a stack of attention blocks.

    Attributes:
        blocks: From the first to the last.
        attentions: (block,) its attention part.
        feed_forwards: (block,) its feed-forward part where it has a name of its own.
        head: The output layer, or None for a body without one.
    """

    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    feed_forwards: tuple[nn.Module | None, ...]
    head: nn.Module | None


def find_transformer(model: nn.Module) -> Transformer | None:
    """The one stack of attention blocks; None for a network without attention.

    Raises:
        InputError: naming the family, where it has another structure.
    """
    if not _attention_stacks(model):
        if _is_encoder_decoder(model):
            raise unsupported(model, "it is an encoder-decoder model")
        if reads_tokens(model):
            raise unsupported(model, "its blocks are not of one class with attention")
        return None
    blocks = find_stack(model)
    found = [attention_of(block) for block in blocks]
    attentions = tuple(each for each in found if each is not None)
    if len(attentions) < len(blocks):
        raise unsupported(
            model, f"it is a hybrid: block {found.index(None)} has no attention"
        )
    for name in RECURRENT_STATES:
        if name in inspect.signature(blocks[0].forward).parameters:
            raise unsupported(model, "its blocks hand on a recurrent state")
    feed_forwards = tuple(map(feed_forward_of, blocks))
    return Transformer(
        tuple(blocks), attentions, feed_forwards, _output_layer(model, blocks)
    )


def find_stack(model: nn.Module) -> list[nn.Module]:
    """The blocks in depth order, with or without attention.

    A block is a child of the one list of like modules with attention; in a network of
    tokens without attention (Mamba), of its one list of like modules; in any other
    network without attention, a residual unit.

    Raises:
        InputError: there are no blocks, or several lists that may be meant.
    """
    if _is_encoder_decoder(model):
        raise unsupported(model, "it is an encoder-decoder model")
    stacks = _attention_stacks(model)
    if len(stacks) > 1:
        raise _several(model, stacks)
    attention_blocks = stacks[0][1] if stacks else []
    if not reads_tokens(model):
        blocks = attention_blocks or residual_units(model)
        if blocks:
            return blocks
    inside = set(attention_blocks)
    others = [
        (name, children)
        for name, children in _outer_lists(model)
        if not any(m in inside for child in children for m in child.modules())
    ]
    if stacks and not others:
        return attention_blocks
    if any(not _alike(children) for _, children in others):
        raise unsupported(model, "it has a list of blocks of several classes")
    if not stacks and len(others) == 1:
        return others[0][1]
    if others:
        raise _several(model, [*stacks, *others])
    raise unsupported(model, "it has no list of blocks")


def residual_units(model: nn.Module) -> list[nn.Module]:
    """The innermost listed modules with two or more layers with weights, in depth order."""
    listed = [
        child
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module
        if sum(isinstance(m, WEIGHTED) for m in child.modules()) >= 2
    ]
    known = set(listed)
    return [
        unit
        for unit in listed
        if not any(m in known for m in unit.modules() if m is not unit)
    ]


def unsupported(model: nn.Module, why: str) -> InputError:
    """One sentence that names the family and says why it is refused."""
    family = getattr(getattr(model, "config", None), "model_type", "")
    name = type(model).__name__ + (f" ({family})" if family else "")
    return InputError(
        f"the structure of {name} is not understood: {why}",
        expected="one stack of blocks with attention, or two or more layers with "
        "weights, each of which reads nothing but what the one before it gives",
        fix="Use a model of another family; this one is not supported yet",
    )


def reads_tokens(model: nn.Module) -> bool:
    """Whether a model looks up tokens, whatever its class."""
    if "input_ids" in inspect.signature(model.forward).parameters:
        return True
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def attention_of(block: nn.Module) -> nn.Module | None:
    """The attention part: by its name, and not a norm or a dropout named after it."""
    for name, child in block.named_children():
        hooked = hasattr(child, "hook_z")
        if "att" in name.lower() and (hooked or next(linears(child), None)):
            return child
    return None


def feed_forward_of(block: nn.Module) -> nn.Module | None:
    """The feed-forward part, where it has a name of its own."""
    for name, child in block.named_children():
        if name.lower() in FEED_FORWARD and linear_shape(child) is None:
            return child
    return None


def neuron_map(block: nn.Module) -> nn.Module:
    """The linear map that ends a block's feed-forward part.

    It is the last map that is registered in the feed-forward part, or in the block
    without its attention where that part has no name.

    Raises:
        InputError: there is none, it does not lead back to the stream, an adapter wraps
            it, or the part is a mixture of experts.
    """
    part, attention = feed_forward_of(block), attention_of(block)
    maps = list(linears(block, skip=attention) if part is None else linears(part))
    if part is None:
        part = next(
            (c for c in block.children() if maps and maps[-1] in set(c.modules())),
            block,
        )
    if not maps or _is_mixture(part) or not _leads_back(maps[-1], attention):
        raise InputError(
            "a block has no down-projection",
            expected="one feed-forward part that ends in a linear map to the stream; "
            "mixtures of experts are not supported",
            got=type(block).__name__,
        )
    if hasattr(maps[-1], "base_layer"):
        raise InputError(
            "the feed-forward part of a block is wrapped by an adapter",
            expected="a plain linear map",
            got=type(maps[-1]).__name__,
            fix="Merge the adapter into the weights first",
        )
    return maps[-1]


def _leads_back(last: nn.Module, attention: nn.Module | None) -> bool:
    """Whether a map gives as many features as attention reads of the stream."""
    reader = next(linears(attention), None) if attention else None
    if reader is None:
        return True
    (width, _), (_, outputs) = (
        linear_shape(reader) or (0, 0),
        linear_shape(last) or (0, 0),
    )
    return outputs == width


def _is_mixture(part: nn.Module) -> bool:
    """Whether a part holds experts: a list of like modules, or stacked matrices."""
    for module in part.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            if _alike(list(module)):
                return True
        elif not isinstance(module, CONVOLUTIONS):
            own = module.parameters(recurse=False)
            if any(p.ndim == 3 and len(p) > 1 for p in own):
                return True
    return False


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map, adapters and GPT-2's Conv1D included."""
    base = getattr(module, "base_layer", None)  # a peft layer around the linear map
    if isinstance(base, nn.Module):
        return linear_shape(base)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def linears(module: nn.Module, skip: nn.Module | None = None) -> Iterator[nn.Module]:
    """Linear maps in ``module``, as registered, without those in ``skip``."""
    if module is skip:
        return
    if linear_shape(module) is not None:
        yield module
        return
    for child in module.children():
        yield from linears(child, skip)


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The table of tokens, where the model names one."""
    return _named_by(model, "get_input_embeddings")


def named_head(model: nn.Module) -> nn.Module | None:
    """The layer that gives the logits of tokens, where the model names one."""
    return _named_by(model, "get_output_embeddings")


def final_norm(model: nn.Module) -> nn.Module | None:
    """The first norm with weights that is registered after the blocks, or None."""
    return next(filter(_is_norm, _after(model, find_stack(model))), None)


def _is_norm(module: nn.Module) -> bool:
    """Whether a module holds nothing but vectors of one length."""
    shapes = {parameter.shape for parameter in module.parameters()}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1


def _after(model: nn.Module, blocks: list[nn.Module]) -> list[nn.Module]:
    """Modules without children that are registered after the last block."""
    modules = list(model.modules())
    last = max(modules.index(inner) for inner in blocks[-1].modules())
    return [module for module in modules[last + 1 :] if not list(module.children())]


def _named_by(model: nn.Module, getter: str) -> nn.Module | None:
    ask = getattr(model, getter, None)
    try:
        found = ask() if callable(ask) else None
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Module) else None


def _output_layer(model: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The layer that gives the logits, named or the last linear map after the blocks."""
    named = named_head(model)
    if named is not None:
        return named
    inside = {module for block in blocks for module in block.modules()}
    found, past_blocks = None, False
    for name, module in model.named_modules():
        past_blocks = past_blocks or module is blocks[-1]
        # A pooler feeds on the blocks too, but gives features, not scores.
        if not past_blocks or module in inside or "pooler" in name:
            continue
        if linear_shape(module) is not None:
            found = module
    return found


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _alike(modules: list[nn.Module]) -> bool:
    return len({type(module) for module in modules}) == 1


def _attention_stacks(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Lists of blocks of one class with attention that lie in no other such list."""
    found: list[tuple[str, list[nn.Module]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module)
        if _alike(children) and any(attention_of(child) for child in children):
            found.append((name, children))
            inside |= set(module.modules())
    return found


def _outer_lists(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Lists that lie in no other list, of modules that have parts and weights."""
    found: list[tuple[str, list[nn.Module]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, nn.ModuleList):
            continue
        children = list(module)
        parts = any(True for child in children for _ in child.children())
        if parts and any(True for _ in module.parameters()):
            found.append((name, children))
            inside |= set(module.modules())
    return found


def _several(model: nn.Module, stacks: list[tuple[str, list[nn.Module]]]) -> InputError:
    names = " and ".join(f"{name!r} ({len(each)})" for name, each in stacks[:2])
    return unsupported(model, f"it has several stacks of blocks: {names}")
