"""Parts of a causal language model, found by how it is built rather than by name."""

from collections.abc import Callable
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
