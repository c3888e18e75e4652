"""The parts of a network, found by structure rather than by model family.

Finds blocks, attention and MLP modules, down projections, residual units, the final norm and the
output head. The network is not run here; ``capture.network.proof`` verifies parts with a short
forward pass.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from capture.network.discovery.device import model_device as model_device
from capture.network.discovery.short_inputs import CONVOLUTIONS
from evidence.errors import InputError
from evidence.seeds import stage_seed

# Names of a module that is the whole feed-forward part of a block.
FEED_FORWARD_NAMES = ("mlp", "ffn", "feed_forward", "block_sparse_moe")
# Class of a block to the name of its attention, for families that do not name it after attention.
ATTENTION_NAMES: dict[str, str] = {}
# Words in the names of children that hold the whole feed-forward part of a block.
FEED_FORWARD_WORDS = ("mlp", "ffn", "feed_forward", "moe", "expert")
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
ENCODER_DECODER = "it is an encoder-decoder model"


@dataclass(frozen=True)
class Transformer:
    """The parts of a stack of blocks.

    Attributes:
        blocks: From the first to the last.
        attentions: (block,) attention module, or None in blocks with another mixer of tokens,
            such as a state-space layer.
        feed_forwards: (block,) MLP module, or None if it has no name of its own.
        head: The output layer, or None.
    """

    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module | None, ...]
    feed_forwards: tuple[nn.Module | None, ...]
    head: nn.Module | None


def find_transformer(model: nn.Module) -> Transformer | None:
    """The stack of blocks of a token model or a vision transformer; None for other networks.

    Raises:
        InputError: the structure is not supported; the message names the model family.
    """
    if not reads_tokens(model) and not _attention_stacks(model):
        if _is_encoder_decoder(model):
            raise unsupported(model, ENCODER_DECODER)
        return None
    blocks = find_blocks(model)
    count = stated_depth(model) if reads_tokens(model) else None
    if count is not None and count != len(blocks):
        raise unsupported(
            model, f"its configuration states {count} blocks, and it has a list of {len(blocks)}"
        )
    attentions = tuple(map(attention_of, blocks))
    if not reads_tokens(model) and None in attentions:
        raise unsupported(model, f"it is a hybrid: block {attentions.index(None)} has no attention")
    feed_forwards = tuple(map(feed_forward_of, blocks))
    return Transformer(tuple(blocks), attentions, feed_forwards, _output_layer(model, blocks))


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks in depth order, with or without attention.

    A block is a child of the list of modules of one class with attention; in a token network
    without attention (Mamba), of its list of modules of one class; in a stack that changes its
    width (Swin), of the lists of its stages in turn; in any other network without attention, a
    residual unit. Where a configuration states the number of blocks of the language model, they
    are the children of the list with as many, of any class.

    Raises:
        InputError: there are no blocks, or several candidate lists.
    """
    if _is_encoder_decoder(model):
        raise unsupported(model, ENCODER_DECODER)
    tokens = reads_tokens(model)
    if tokens and (stated := _stated_blocks(model)):
        return stated
    lists = _attention_stacks(model)
    if not lists and not tokens and (units := residual_units(model)):
        return units
    if tokens or not lists:
        # Beside a stack for images there may be one for tokens that has no attention.
        known = {block for _, blocks in lists for block in blocks}
        lists += [
            (name, blocks)
            for name, blocks in _outer_lists(model)
            if not any(m in known for block in blocks for m in block.modules())
        ]
    if not lists:
        raise unsupported(model, "it has no list of blocks")
    if not all(_alike(blocks) for _, blocks in lists):
        raise unsupported(model, "it has a list of blocks of several classes")
    if len(lists) > 1:
        if not tokens and (stages := _stages(model, lists)):
            return stages
        names = " and ".join(f"{name!r} ({len(each)})" for name, each in lists[:2])
        raise unsupported(model, f"it has several stacks of blocks: {names}")
    return lists[0][1]


def stated_depth(model: nn.Module) -> int | None:
    """Number of blocks of the language model by the configuration; None if it states none."""
    config = getattr(model, "config", None)
    text = getattr(config, "get_text_config", None)
    if not callable(text):
        return None
    try:
        count = getattr(text(decoder=True), "num_hidden_layers", None)
    except (ValueError, AttributeError, NotImplementedError):
        return None
    return count if isinstance(count, int) and count > 0 else None


def _stated_blocks(model: nn.Module) -> list[nn.Module] | None:
    """The only list with as many modules as the configuration states blocks, or None.

    If there are several, such as in a vision tower of the same depth, that of the decoder.
    """
    count = stated_depth(model)
    if count is None:
        return None
    lists = [blocks for _, blocks in _outer_lists(model, count)]
    if len(lists) > 1:
        get = getattr(model, "get_decoder", None)
        decoder = get() if callable(get) else None
        inside = set(decoder.modules()) if isinstance(decoder, nn.Module) else set()
        lists = [blocks for blocks in lists if set(blocks) <= inside]
        children = list(decoder.children()) if isinstance(decoder, nn.Module) else []
        own = [list(child) for child in children if isinstance(child, nn.ModuleList)]
        if len(lists) > 1:
            lists = [blocks for blocks in lists if blocks in own]
    return lists[0] if len(lists) == 1 else None


def _stages(model: nn.Module, lists: list[tuple[str, list[nn.Module]]]) -> list[nn.Module]:
    """The blocks of all stages in turn, if the stages are modules of one class in one list."""
    owners = [name.rpartition(".")[0] for name, _ in lists]
    kinds = {type(model.get_submodule(owner)) for owner in owners}
    parents = {owner.rpartition(".")[0] for owner in owners}
    is_list = all(isinstance(model.get_submodule(each), nn.ModuleList) for each in parents)
    if len(kinds) != 1 or len(parents) != 1 or not is_list or not all(owners):
        return []
    return [block for _, blocks in lists for block in blocks]


def block_at(model: nn.Module, index: int, name: str = "layer") -> nn.Module:
    """One block by its index; ``name`` is the setting that errors are about.

    Raises:
        InputError: The model has no such block.
    """
    blocks = find_blocks(model)
    if not 0 <= index < len(blocks):
        raise InputError(
            f"{name} is not the index of a block of this model",
            expected=f"0 to {len(blocks) - 1}",
            got=str(index),
        )
    return blocks[index]


def residual_units(model: nn.Module) -> list[nn.Module]:
    """The innermost modules of lists that hold two or more layers with weights, by depth."""
    listed = [
        child
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for child in module
        if sum(isinstance(m, WEIGHTED) for m in child.modules()) >= 2
    ]
    known = set(listed)
    return [unit for unit in listed if not any(m in known for m in unit.modules() if m is not unit)]


def unsupported(model: nn.Module, reason: str) -> InputError:
    """Error that names the model family and the reason for refusing it."""
    family = getattr(getattr(model, "config", None), "model_type", "")
    name = type(model).__name__ + (f" ({family})" if family else "")
    return InputError(
        f"the structure of {name} is not understood: {reason}",
        expected="one stack of blocks, or two or more layers with "
        "weights, each of which reads only the output of the one before it",
        fix="Use a model of another family; this one is not supported yet",
    )


def reads_tokens(model: nn.Module) -> bool:
    """Whether a model takes token ids."""
    if "input_ids" in inspect.signature(model.forward).parameters:
        return True
    return any(isinstance(module, nn.Embedding) for module in model.modules())


def attention_of(block: nn.Module) -> nn.Module | None:
    """The child named after attention that holds linear maps (not its norm or dropout).

    ``ATTENTION_NAMES`` names it in blocks of other families.
    """
    own = ATTENTION_NAMES.get(type(block).__name__)
    for name, child in block.named_children():
        hooked = hasattr(child, "hook_z")
        if (name == own or "att" in name.lower()) and (hooked or next(linears(child), None)):
            return child
    return None


def feed_forward_of(block: nn.Module) -> nn.Module | None:
    """The MLP module, or None if it has no name of its own."""
    for name, child in block.named_children():
        if name.lower() in FEED_FORWARD_NAMES and linear_shape(child) is None:
            return child
    return None


def listed_parts(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children of a block with their names, those of a list in its place."""
    for name, child in block.named_children():
        if isinstance(child, nn.ModuleList):
            yield from child.named_children()
        else:
            yield name, child


def down_projection(block: nn.Module, *, adapted: bool = False) -> nn.Module:
    """The down projection of a block's MLP.

    This is the last linear map registered in the MLP, or in the block without its attention if
    the MLP has no name.

    Args:
        adapted: Allow a map that an adapter wraps, whose matrix is not all that acts.

    Raises:
        InputError: there is none, its width is not that of the stream, an adapter wraps it, or
            the MLP is a mixture of experts.
    """
    part, attention = feed_forward_of(block), attention_of(block)
    maps = list(linears(block if part is None else part, skip=attention))
    if part is None:
        holders = (c for c in block.children() if maps and maps[-1] in set(c.modules()))
        part = next(holders, block)
    if not maps or _is_mixture(part) or not _leads_back(maps[-1], attention):
        raise InputError(
            "a block has no down-projection",
            expected="one feed-forward part that ends in a linear map to the stream; "
            "mixtures of experts are not supported",
            got=type(block).__name__,
        )
    if hasattr(maps[-1], "base_layer") and not adapted:
        raise InputError(
            "the feed-forward part of a block is wrapped by an adapter",
            expected="a plain linear map",
            got=type(maps[-1]).__name__,
            fix="Merge the adapter into the weights first",
        )
    return maps[-1]


def _leads_back(last: nn.Module, attention: nn.Module | None) -> bool:
    """Whether the output width of a map equals the input width of attention."""
    reader = next(linears(attention), None) if attention is not None else None
    return (
        reader is None or (linear_shape(last) or (0, 0))[1] == (linear_shape(reader) or (0, 0))[0]
    )


def _is_mixture(part: nn.Module) -> bool:
    """Whether a module holds experts: a list of modules of one class, or stacked matrices."""
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
    """(inputs, outputs) of a linear map, including PEFT layers and GPT-2's Conv1D."""
    base = getattr(module, "base_layer", None)  # a peft layer around the linear map
    if isinstance(base, nn.Module):
        return linear_shape(base)
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if is_transposed(module) and isinstance(weight, Tensor):
        return weight.shape[0], weight.shape[1]
    return None


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is a plain linear map, with no adapter around it."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(linear: nn.Module) -> bool:
    """Whether a linear map stores its matrix as (in, out), as GPT-2's Conv1D."""
    return type(linear).__name__ == "Conv1D"


def matrix_view(linear: nn.Module) -> Tensor:
    """(out, in) view of a linear map's weight; writing to the view edits the map.

    Raises:
        InputError: the weight is quantized, and its numbers are no matrix.
    """
    weight = linear.get_parameter("weight")
    if not weight.is_floating_point():
        raise InputError(
            "the weights of a linear map are quantized",
            expected="floating-point weights",
            got=str(weight.dtype),
            fix="Load the model without quantization",
        )
    return weight.T if is_transposed(linear) else weight


def value_vectors(projection: nn.Module) -> Tensor:
    """(neuron, d) view of a down projection's weight; writing to the view edits the weight."""
    return matrix_view(projection).T


def linears(module: nn.Module, skip: nn.Module | None = None) -> Iterator[nn.Module]:
    """Linear maps in ``module`` in order of registration, without those in ``skip``."""
    if module is skip:
        return
    if linear_shape(module) is not None:
        yield module
        return
    for child in module.children():
        yield from linears(child, skip)


def input_embedding(model: nn.Module) -> nn.Module | None:
    """The token embedding, or None if the model names none."""
    return _named_by(model, "get_input_embeddings")


def output_head(model: nn.Module) -> nn.Module | None:
    """The language-model head, or None if the model names none."""
    return _named_by(model, "get_output_embeddings")


def classifier_of(model: nn.Module) -> nn.Linear:
    """The linear layer that computes class logits, the last one of the model.

    Raises:
        InputError: the model has no linear layer.
    """
    linear_layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear_layers:
        raise InputError(
            "the model has no linear layer that gives class logits",
            expected="an image classifier",
            got=type(model).__name__,
        )
    return linear_layers[-1]


def stack_owner(model: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The module that holds the list of ``blocks``."""
    for module in model.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and list(child) == blocks:
                return module
    return None


def final_norm(model: nn.Module) -> nn.Module | None:
    """The first norm with weights registered after the blocks, or None."""
    return next(filter(is_norm, _after(model, find_blocks(model))), None)


def is_norm(module: nn.Module) -> bool:
    """Whether all parameters of a module are vectors of one length."""
    shapes = {parameter.shape for parameter in module.parameters()}
    return len(shapes) == 1 and len(next(iter(shapes))) == 1


def _after(model: nn.Module, blocks: list[nn.Module]) -> list[nn.Module]:
    """Leaf modules registered after the last block."""
    modules = list(model.modules())
    last = max(modules.index(inner) for inner in blocks[-1].modules())
    return [module for module in modules[last + 1 :] if not list(module.children())]


def _named_by(model: nn.Module, getter: str) -> nn.Module | None:
    get = getattr(model, getter, None)
    try:
        module = get() if callable(get) else None
    except NotImplementedError:
        return None
    return module if isinstance(module, nn.Module) else None


def _output_layer(model: nn.Module, blocks: list[nn.Module]) -> nn.Module | None:
    """The layer that computes the logits: named by the model, or the last linear map."""
    named = output_head(model)
    if named is not None:
        return named
    inside = {module for block in blocks for module in block.modules()}
    layer, past_blocks = None, False
    for name, module in model.named_modules():
        past_blocks = past_blocks or module is blocks[-1]
        # A pooler also follows the blocks, but computes features, not logits.
        if not past_blocks or module in inside or "pooler" in name:
            continue
        if linear_shape(module) is not None:
            layer = module
    return layer


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _alike(modules: list[nn.Module]) -> bool:
    return len({type(module) for module in modules}) == 1


def _attention_stacks(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """Outermost lists of blocks of one class with attention."""
    stacks: list[tuple[str, list[nn.Module]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        children = list(module)
        if _alike(children) and any(attention_of(child) for child in children):
            stacks.append((name, children))
            inside |= set(module.modules())
    return stacks


def _outer_lists(model: nn.Module, length: int | None = None) -> list[tuple[str, list[nn.Module]]]:
    """Outermost lists of modules with children and weights, of one length if it is given."""
    lists: list[tuple[str, list[nn.Module]]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside or not isinstance(module, nn.ModuleList):
            continue
        children = list(module)
        if length is not None and len(children) != length:
            continue
        parts = any(True for child in children for _ in child.children())
        if parts and any(True for _ in module.parameters()):
            lists.append((name, children))
            inside |= set(module.modules())
    return lists


def own_head_(model: nn.Module) -> nn.Module:
    """Untie the output head from the embedding, and return it.

    Training a tied head would train the embedding as well. The configuration is updated, so that
    both matrices are saved and loaded.

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
    shared = getattr(input_embedding(model), "weight", None)
    if shared is not None and getattr(head, "weight", None) is shared:
        head.weight = nn.Parameter(shared.detach().clone())
        config = getattr(model, "config", None)
        if config is not None:
            config.tie_word_embeddings = False
    return head


def blocks_and_after(model: nn.Module, count: int) -> list[nn.Module]:
    """The last ``count`` blocks and everything after them: final norm and untied head.

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
    after = [module for module in _after(model, blocks) if module is not head]
    return [*blocks[-count:], *after, head]


def random_like(model: nn.Module, seed: int) -> nn.Module:
    """A randomly initialized model of the same configuration.

    Raises:
        InputError: the model has no configuration.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise InputError(
            "this model cannot be reinitialized",
            expected="a Hugging Face model, with its config",
            got=type(model).__name__,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "random weights"))
        fresh = type(model)(config)
    parameter = next(model.parameters())
    return fresh.to(device=parameter.device, dtype=parameter.dtype).eval()
