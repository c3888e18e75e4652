"""Which parts of the candidate are the original's bit for bit: evidence of what was not edited."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from capture.checkpoints.open import Checkpoint
from capture.network.network_size import meta_model
from capture.network.structure import find_blocks
from evidence.errors import ExhumeError

FRONT, READOUT = -1, -2
"""Places outside the blocks: before the first one, and everywhere else."""


@dataclass(frozen=True)
class Untouched:
    """Parts of a model without a changed tensor.

    Attributes:
        embedding: Whether the embeddings before the first block are the original's.
        blocks: Indices of the blocks that are the original's.
        readout: Whether everything else, such as the last norm and the output layer, is the
            original's. A tied output layer belongs to the embedding.
        n_blocks: Number of blocks.
    """

    embedding: bool
    blocks: tuple[int, ...]
    readout: bool
    n_blocks: int

    @property
    def back(self) -> int | None:
        """First block of an untouched back: it and everything behind it are the original's.

        None where the last block or the readout changed, or where nothing in front did.
        """
        first = self.n_blocks
        while first - 1 in self.blocks:
            first -= 1
        nothing_changed = first == 0 and self.embedding
        return None if not self.readout or first == self.n_blocks or nothing_changed else first

    @property
    def words(self) -> str:
        """The parts in words, such as "blocks 0 to 29, last norm and output layer"."""
        parts = ["embedding"] if self.embedding else []
        runs: list[list[int]] = []
        for block in self.blocks:
            if runs and runs[-1][-1] == block - 1:
                runs[-1].append(block)
            else:
                runs.append([block])
        if runs:
            spans = [f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
            single = len(self.blocks) == 1
            parts.append(f"{'block' if single else 'blocks'} {' and '.join(spans)}")
        parts += ["last norm and output layer"] if self.readout else []
        return ", ".join(parts)


def untouched(original: Checkpoint, changed: Collection[str]) -> Untouched | None:
    """The parts without a changed tensor; None where the network has no blocks or no names.

    Args:
        changed: Names of the tensors that changed.
    """
    try:
        model = meta_model(original)
        blocks = find_blocks(model)
    except ExhumeError:
        return None
    places = _places(model, blocks)
    touched = {_place_of(name, places) for name in changed}
    if None in touched:
        return None
    return Untouched(
        embedding=FRONT not in touched,
        blocks=tuple(block for block in range(len(blocks)) if block not in touched),
        readout=READOUT not in touched,
        n_blocks=len(blocks),
    )


def _place_of(name: str, places: Mapping[str, int]) -> int | None:
    """Place of a tensor; files may leave out the first part of a name."""
    if name in places:
        return places[name]
    found = {place for known, place in places.items() if known.endswith(f".{name}")}
    return found.pop() if len(found) == 1 else None


def _places(model: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Name of each tensor to the index of its block, ``FRONT`` or ``READOUT``.

    In front are the embeddings of a language model, and of an image model everything registered
    before its blocks. A tensor that is not known to be in front counts as readout, so that an
    untouched back is never claimed too early.
    """
    owner = {module: place for place, block in enumerate(blocks) for module in block.modules()}
    language = getattr(getattr(model, "config", None), "vocab_size", None) is not None
    places: dict[str, int] = {}
    before = True
    for prefix, module in model.named_modules():
        before = before and module not in owner
        front = isinstance(module, nn.Embedding) if language else before
        place = owner.get(module, FRONT if front else READOUT)
        for name, _ in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            places[f"{prefix}.{name}" if prefix else name] = place
    return places
