"""Activations on disk under a name made of everything they depend on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from capture.activations import Activations, capture_wanted
from capture.positions import Positions, Wanted, wanted_positions
from evidence.errors import InputError
from evidence.files import folder_atomic
from evidence.progress import SILENT, Progress
from evidence.sequences import Sequences

CODE_VERSION = "2"  # raise it when the same request would give other numbers
SLAB_BYTES, CHUNK_BYTES = 256 << 20, 4 << 20
DESCRIPTION_BYTES = 13 << 10  # of an array, beside its numbers: folders for the most


class Fingerprinted(Protocol):
    """What the store needs of a checkpoint."""

    @property
    def weights_hash(self) -> str:
        """Hash of the weights."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration."""
        ...

    def load(self) -> nn.Module:
        """The model itself, in float32."""
        ...


@dataclass(frozen=True)
class ActivationStore:
    """Captured activations, one Zarr group a request, computed once.

    A group is written beside its final place and renamed when complete, so that a
    reader never sees half of one and an interrupted run leaves nothing that counts.

    Attributes:
        root: Folder of the store; made when first needed.
        slab_bytes: Activations held in memory while capturing; more go out in slabs.
    """

    root: Path
    slab_bytes: int = SLAB_BYTES

    def activations(
        self,
        checkpoint: Fingerprinted,
        sequences: Sequences,
        sites: Sequence[str],
        positions: Positions = "last_prompt",
        model: nn.Module | None = None,
        *,
        subject_end: Sequence[int] | None = None,
        progress: Progress = SILENT,
    ) -> Activations:
        """Captured now or read back, the same values either way.

        Args:
            checkpoint: Whose activations; its fingerprint is part of the name.
            sequences: The rows.
            sites: Site names.
            positions: See ``capture.positions.wanted_positions``.
            model: ``checkpoint`` already loaded and unchanged, to save loading it.
            subject_end: As in ``capture_activations``.
            progress: Where to show progress.

        Returns:
            Activations whose arrays stay on disk until they are sliced.

        Raises:
            InputError: as ``capture_activations``; or the disk is full.
        """
        names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
        wanted = wanted_positions(sequences, positions, subject_end)
        folder = self.root / _key(checkpoint, sequences, names, wanted)
        if not folder.is_dir():
            loaded = model if model is not None else checkpoint.load()
            self._capture(folder, loaded, sequences, names, wanted, progress)
        return _opened(folder, names, wanted)

    def _capture(
        self,
        folder: Path,
        model: nn.Module,
        sequences: Sequences,
        names: tuple[str, ...],
        wanted: Wanted,
        progress: Progress,
    ) -> None:
        try:
            with folder_atomic(folder) as scratch:
                self._write(scratch, model, sequences, names, wanted, progress)
        except OSError:
            # Another process may have finished the same request first: its folder is
            # as good as ours.
            if not folder.is_dir():
                raise

    def _write(
        self,
        scratch: Path,
        model: nn.Module,
        sequences: Sequences,
        names: tuple[str, ...],
        wanted: Wanted,
        progress: Progress,
    ) -> None:
        import zarr

        group: Any = zarr.open_group(scratch, mode="w")
        total = len(sequences)
        # One row tells how much a row takes, and so how many fit in memory.
        first = capture_wanted(model, sequences[[0]], names, wanted.rows([0]))
        row_bytes = {name: max(1, array.nbytes) for name, array in first.items()}
        chunk = rows_a_chunk(total, max(row_bytes.values()))
        for name, array in first.items():
            shape = array.shape[1:]
            group.create_array(
                name,
                shape=(total, *shape),
                chunks=(chunk, *shape),
                dtype="float32",
                compressors=None,  # float noise does not compress
            )
        # A whole number of chunks, so that none is written twice.
        slab = max(1, self.slab_bytes // sum(row_bytes.values()) // chunk) * chunk
        with progress.task("activations", total) as advance:
            for start in range(0, total, slab):
                stop = min(start + slab, total)
                arrays = capture_wanted(
                    model,
                    sequences[range(start, stop)],
                    names,
                    wanted.rows(slice(start, stop)),
                    advance=advance,
                )
                for name, array in arrays.items():
                    group[name][start:stop] = array


def _opened(folder: Path, names: tuple[str, ...], wanted: Wanted) -> Activations:
    import zarr

    try:
        group = zarr.open_group(folder, mode="r")
        arrays = {name: group[name] for name in names}
    except (KeyError, ValueError, OSError) as error:
        raise InputError(
            f"the stored activations in {folder} are damaged ({error})",
            fix="Delete that folder; it will be computed again",
        ) from error
    return Activations(names, arrays, wanted.mask)


def _key(
    checkpoint: Fingerprinted,
    sequences: Sequences,
    names: tuple[str, ...],
    wanted: Wanted,
) -> str:
    """sha256, in hex, over all that the values depend on.

    The configuration belongs to it: the same tensors with another rotary base or
    norm constant compute something else.
    """
    positions = "mean" if wanted.index is None else wanted.index.tolist()
    mask = None if wanted.mask is None else wanted.mask.tolist()
    request = [
        CODE_VERSION,
        checkpoint.weights_hash,
        checkpoint.config,
        sequences.ids,
        names,
        [positions, mask],
    ]
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_a_chunk(rows: int, row_bytes: int) -> int:
    """Rows in each chunk of an array; chunks are written whole, so they are alike."""
    chunks = -(-rows // max(1, CHUNK_BYTES // row_bytes))
    return -(-rows // chunks)


def stored_bytes(rows: int, width: int, sites: int) -> int:
    """What a group takes on disk: one vector a row and site, and what describes it.

    Args:
        rows: How many rows.
        width: Numbers of a vector.
        sites: How many sites of that width.
    """
    if rows == 0:
        return 0
    chunk = rows_a_chunk(rows, 4 * width)
    whole = -(-rows // chunk) * chunk * 4 * width
    return sites * (whole + DESCRIPTION_BYTES) + DESCRIPTION_BYTES
