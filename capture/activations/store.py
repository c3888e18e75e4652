"""Activations on disk under a name made of everything they depend on."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from capture.activations.capture import Activations, capture_selected
from capture.activations.positions import Positions, PositionSelection, select_positions
from capture.data.sequences import Sequences
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.storage.files import atomic_folder
from evidence.storage.removal import delete_owned_folder

CODE_VERSION = "3"  # raise it when the same request would give other numbers
SLAB_BYTES, CHUNK_BYTES = 256 << 20, 4 << 20
CHECKSUM_BYTES = 4  # that crc32c puts after every chunk
GROUP_FILES = re.compile(r"([\w.]+/)?(zarr\.json|c(/\d+)+)")
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
    reader never sees half of one and an interrupted run leaves nothing that counts. One
    that lost a file, or part of one, since then is made again; Zarr would read zeros.
    Every chunk carries a checksum, which is looked at when it is read.

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
            positions: See ``capture.activations.positions.select_positions``.
            model: ``checkpoint`` already loaded and unchanged, to save loading it.
            subject_end: As in ``capture_activations``.
            progress: Where to show progress.

        Returns:
            Activations whose arrays stay on disk until they are sliced.

        Raises:
            InputError: as ``capture_activations``; or the disk is full. A slice of
                an array raises it where a chunk is not as it was written.
        """
        names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
        wanted = select_positions(sequences, positions, subject_end)
        folder = self.root / _key(checkpoint, sequences, names, wanted)
        found = _opened(folder, names, wanted, len(sequences))
        if found is None:
            if os.path.lexists(folder):
                delete_owned_folder(folder, GROUP_FILES)
            loaded = model if model is not None else checkpoint.load()
            self._capture(folder, loaded, sequences, names, wanted, progress)
            found = _opened(folder, names, wanted, len(sequences))
        if found is None:
            raise InputError(
                f"the activations in {folder} are not as they were written",
                fix="Check the disk, or choose another folder",
            )
        return found

    def _capture(
        self,
        folder: Path,
        model: nn.Module,
        sequences: Sequences,
        names: tuple[str, ...],
        wanted: PositionSelection,
        progress: Progress,
    ) -> None:
        try:
            with atomic_folder(folder) as scratch:
                self._write(scratch, model, sequences, names, wanted, progress)
        except InputError:
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
        wanted: PositionSelection,
        progress: Progress,
    ) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        group: Any = zarr.open_group(scratch, mode="w")
        total = len(sequences)
        # One row tells how much a row takes, and so how many fit in memory.
        first = capture_selected(model, sequences[[0]], names, wanted.rows([0]))
        row_bytes = {name: max(1, array.nbytes) for name, array in first.items()}
        chunk = rows_per_chunk(total, max(row_bytes.values()))
        stored = {}
        for name, array in first.items():
            shape = array.shape[1:]
            stored[name] = group.create_array(
                name,
                shape=(total, *shape),
                chunks=(chunk, *shape),
                dtype="float32",
                compressors=Crc32cCodec(),  # float noise does not compress
                config={"write_empty_chunks": True},  # a missing chunk is a lost one
            )
        # A whole number of chunks, so that none is written twice.
        slab = max(1, self.slab_bytes // sum(row_bytes.values()) // chunk) * chunk
        with progress.task("activations", total) as advance:
            for start in range(0, total, slab):
                stop = min(start + slab, total)
                arrays = capture_selected(
                    model,
                    sequences[range(start, stop)],
                    names,
                    wanted.rows(slice(start, stop)),
                    advance=advance,
                )
                for name, array in arrays.items():
                    stored[name][start:stop] = array


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array on disk that is read when it is sliced.

    Attributes:
        array: The Zarr array.
        folder: Where its chunks lie.
    """

    array: Any
    folder: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """As of a NumPy array."""
        return self.array.shape

    @property
    def dtype(self) -> Any:
        """As of a NumPy array."""
        return self.array.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: Any) -> Any:
        first = place[0] if isinstance(place, tuple) else place
        rows = range(len(self))[first] if isinstance(first, slice) else range(len(self))
        cause = None
        if self.is_complete(rows):
            try:
                return self.array[place]
            except ValueError as error:
                if "checksum" not in str(error):
                    raise
                cause = error
        group = self.folder.parent
        if os.path.lexists(group):
            delete_owned_folder(group, GROUP_FILES)
        raise InputError(
            f"the activations in {group} are not as they were written",
            fix="Run the same command again; they are computed again",
        ) from cause

    def is_complete(self, rows: range) -> bool:
        """Whether every chunk that holds one of ``rows`` is there in its full size."""
        rows_each, *others = self.array.chunks
        size = self.dtype.itemsize * prod(self.array.chunks) + CHECKSUM_BYTES
        tail = ["0"] * len(others)  # Only rows are cut into chunks.
        for number in {row // rows_each for row in rows}:
            try:
                found = os.lstat(self.folder.joinpath("c", str(number), *tail))
            except OSError:
                return False
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return False
        return True


def _opened(
    folder: Path, names: tuple[str, ...], wanted: PositionSelection, rows: int
) -> Activations | None:
    """The group in ``folder``; None where there is none or a part of it is lost."""
    import zarr

    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        group = zarr.open_group(folder, mode="r")
        arrays = {name: StoredArray(group[name], folder / name) for name in names}
        for each in arrays.values():
            fits = each.dtype == "float32" and each.array.chunks[1:] == each.shape[1:]
            if not fits or len(each) != rows or not each.is_complete(range(rows)):
                return None
    except (KeyError, ValueError, TypeError, AttributeError, OSError):
        return None  # Zarr meets bad metadata with errors of these kinds.
    return Activations(names, arrays, wanted.mask)


def _key(
    checkpoint: Fingerprinted,
    sequences: Sequences,
    names: tuple[str, ...],
    wanted: PositionSelection,
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


def rows_per_chunk(rows: int, row_bytes: int) -> int:
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
    chunk = rows_per_chunk(rows, 4 * width)
    whole = -(-rows // chunk) * chunk * 4 * width
    return sites * (whole + DESCRIPTION_BYTES) + DESCRIPTION_BYTES
