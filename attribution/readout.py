"""From the residual stream to the logits: the model's own final norm and output layer."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from capture.activations.passes import accepted_inputs
from capture.data.sequences import Sequences, pad
from capture.network.hooks import evaluation_mode, record_places
from capture.network.sites import Place, Sites
from capture.network.structure import find_transformer, model_device, unsupported
from evidence.errors import InputError

# Largest difference to the model's own logits, relative to the largest of them.
REL_TOL = 1e-3


@dataclass(frozen=True)
class StreamReadout:
    """What a model does to the stream after its last block.

    Attributes:
        norm: The final norm; None if nothing lies between the last block and the head.
        logits: The place of the logits; its module is the head.
    """

    norm: nn.Module | None
    logits: Place

    def normed(self, states: Tensor) -> Tensor:
        """(..., d) input of the head, from (..., d) states of the stream."""
        return states if self.norm is None else self.norm(states)

    def __call__(self, states: Tensor) -> Tensor:
        """(..., token) logits from (..., d) states, with the model's scale and soft cap."""
        return self.logits.read(self.logits.module(self.normed(states)))


def find_readout(model: nn.Module, sites: Sites, sequences: Sequences) -> StreamReadout:
    """The readout of a language model, checked against its own logits on one row.

    Args:
        sites: The model's sites.
        sequences: Rows the model can run on.

    Raises:
        InputError: Something other than one norm lies between the last block and the head, or the
            logits are not those of the head.
    """
    head, last = sites.resolve("final"), sites.resolve(f"resid.{sites.n_layers - 1}")
    transformer = find_transformer(model)
    inside = {m for b in transformer.blocks for m in b.modules()} if transformer else set()
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        read = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(read, Tensor) and isinstance(out, Tensor) and read.shape == out.shape:
            seen[module] = (read, out)

    with ExitStack() as stack:
        for module in model.modules():
            if module not in inside:
                stack.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        places = [last, head, sites.resolve("logits")]
        values = stack.enter_context(record_places(places))
        stack.enter_context(evaluation_mode(model))
        stack.enter_context(torch.no_grad())
        inputs = pad(sequences, [0], device=model_device(model)).model_inputs
        output = model(**accepted_inputs(model, inputs | {"use_cache": False}))
        gave = output if isinstance(output, Tensor) else output.logits
        states, read = values[last.name], values[head.name]
        norm = None
        if states.shape != read.shape or not torch.equal(states, read):
            found = [m for m, (x, y) in seen.items() if _is_map(x, y, states, read)]
            norm = found[0] if found else None
        readout = StreamReadout(norm, sites.resolve("logits"))
        if norm is not None or states.shape == read.shape:
            own = readout(states).float()
            if own.shape == gave.shape:
                tolerance = max(REL_TOL, 8 * torch.finfo(gave.dtype).eps)
                error = (own - gave.float()).abs().max() / gave.float().abs().max().clamp(min=1e-9)
                if float(error) <= tolerance:
                    return readout
    raise unsupported(model, "what follows its last block is not one norm and the output layer")


def _is_map(x: Tensor, y: Tensor, states: Tensor, read: Tensor) -> bool:
    return x.shape == states.shape and torch.equal(x, states) and torch.equal(y, read)


def next_tokens(
    sequences: Sequences, index: NDArray[np.int64], tokens: ArrayLike | None, n_tokens: int
) -> NDArray[np.int64]:
    """(row, k) token of interest at each position: given, or the one that follows in the row.

    Args:
        index: (row, k) positions in the rows.
        tokens: One token id for all rows, one a row, or (row, k); by default the next token.
        n_tokens: Size of the vocabulary.

    Returns:
        Token ids; -1 where the row ends at the position and no token is given.

    Raises:
        InputError: Tokens do not fit the rows, or lie outside the vocabulary.
    """
    if tokens is None:
        following = [
            [ids[at + 1] if at + 1 < len(ids) else -1 for at in row]
            for ids, row in zip(sequences.ids, index, strict=True)
        ]
        return np.array(following, dtype=np.int64).reshape(index.shape)
    given = np.asarray(tokens)
    if not np.issubdtype(given.dtype, np.integer):
        raise InputError("tokens are token ids", expected="whole numbers", got=str(given.dtype))
    if given.ndim == 1:
        given = given[:, None]
    try:
        found = np.broadcast_to(given, index.shape).astype(np.int64)
    except ValueError as error:
        raise InputError(
            "tokens do not fit the rows",
            expected=f"one token id, or one for each of {len(index)} rows",
            got=str(np.shape(tokens)),
        ) from error
    if found.min() < 0 or found.max() >= n_tokens:
        raise InputError(
            "a token is not in the vocabulary of the model",
            expected=f"0 to {n_tokens - 1}",
            got=f"{found.min()} to {found.max()}",
        )
    return found
