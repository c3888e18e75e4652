"""Content-addressed store of activations on disk (Zarr)."""

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
from capture.network.edits.row_order import edits_open, has_foreign_hooks
from capture.network.model_inputs import plain_inputs
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.storage.files import atomic_folder
from evidence.storage.removal import delete_owned_folder

CODE_VERSION = "3"  # increment if the same request would give other values
SLAB_BYTES, CHUNK_BYTES = 256 << 20, 4 << 20
CHECKSUM_BYTES = 4  # crc32c, after every chunk
GROUP_FILES = re.compile(r"([\w.]+/)?(zarr\.json|c(/\d+)+)")
DESCRIPTION_BYTES = 13 << 10  # metadata and folders of an array


class Fingerprinted(Protocol):
    """The interface of a checkpoint that the store needs."""

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
    """Cache of captured activations, one Zarr group per request.

    Groups are written atomically. A group with missing or truncated files is recomputed, because
    Zarr would read zeros. Every chunk has a checksum, which is verified on reading.

    Attributes:
        root: Folder of the store; created on first use.
        slab_bytes: Maximum memory for activations during capture; larger arrays are written in
            slabs.

    Examples:
        >>> from pathlib import Path
        >>> store = exhume.ActivationStore(Path("activations"))
        >>> kept = store.activations(checkpoint, rows, ["resid.0"])
        >>> again = store.activations(checkpoint, rows, ["resid.0"])  # read back
        >>> bool((again.site("resid.0") == kept.site("resid.0")).all())
        True
    """

    root: Path
    slab_bytes: int = SLAB_BYTES

    @plain_inputs
    def activations(
        self,
        checkpoint: Fingerprinted,
        sequences: Sequences,
        sites: Sequence[str],
        positions: Positions = "last_prompt",
        model: nn.Module | None = None,
        *,
        subject_end: Sequence[int] | None = None,
        progress: Progress = AUTO,
    ) -> Activations:
        """Activations of a checkpoint, from the store or captured now.

        Args:
            checkpoint: The checkpoint; its weights and configuration are part of the key.
            sequences: The rows.
            sites: Site names.
            positions: See ``capture.activations.positions.select_positions``.
            model: The unmodified model, if already loaded. Hooks and open edits are refused,
                since what is stored is found again without them.
            subject_end: As in ``capture_activations``.

        Returns:
            Activations whose arrays stay on disk until they are sliced.

        Raises:
            InputError: as ``capture_activations``; or the disk is full. Slicing an array raises
                it if a chunk is damaged.
        """
        names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
        selection = select_positions(sequences, positions, subject_end)
        folder = self.root / _request_key(checkpoint, sequences, names, selection)
        activations = _open_group(folder, names, selection, len(sequences))
        if activations is None:
            if os.path.lexists(folder):
                delete_owned_folder(folder, GROUP_FILES)
            loaded = model if model is not None else checkpoint.load()
            _check_unedited(loaded)
            self._capture(folder, loaded, sequences, names, selection, progress)
            activations = _open_group(folder, names, selection, len(sequences))
        if activations is None:
            raise InputError(
                f"the activations in {folder} are damaged",
                fix="Check the disk, or choose another folder",
            )
        return activations

    def _capture(
        self,
        folder: Path,
        model: nn.Module,
        sequences: Sequences,
        names: tuple[str, ...],
        selection: PositionSelection,
        progress: Progress,
    ) -> None:
        try:
            with atomic_folder(folder) as scratch:
                self._write(scratch, model, sequences, names, selection, progress)
        except InputError:
            # Another process may have finished the same request first.
            if not folder.is_dir():
                raise

    def _write(
        self,
        scratch: Path,
        model: nn.Module,
        sequences: Sequences,
        names: tuple[str, ...],
        selection: PositionSelection,
        progress: Progress,
    ) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec

        group: Any = zarr.open_group(scratch, mode="w")
        total = len(sequences)
        # Capture one row to measure its size.
        first = capture_selected(model, sequences[[0]], names, selection.rows([0]))
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
                config={"write_empty_chunks": True},  # so that a missing chunk is an error
            )
        # A whole number of chunks, so that no chunk is written twice.
        slab = max(1, self.slab_bytes // sum(row_bytes.values()) // chunk) * chunk
        with as_progress(progress).task("activations", total) as advance:
            for start in range(0, total, slab):
                stop = min(start + slab, total)
                arrays = capture_selected(
                    model,
                    sequences[range(start, stop)],
                    names,
                    selection.rows(slice(start, stop)),
                    advance=advance,
                )
                for name, array in arrays.items():
                    stored[name][start:stop] = array


@dataclass(frozen=True, eq=False)
class StoredArray:
    """An array on disk that is read when sliced.

    Attributes:
        array: The Zarr array.
        folder: Folder of its chunks.
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

    def __getitem__(self, key: Any) -> Any:
        first = key[0] if isinstance(key, tuple) else key
        rows = range(len(self))[first] if isinstance(first, slice) else range(len(self))
        cause = None
        if self.is_complete(rows):
            try:
                return self.array[key]
            except ValueError as error:
                if "checksum" not in str(error):
                    raise
                cause = error
        group = self.folder.parent
        if os.path.lexists(group):
            delete_owned_folder(group, GROUP_FILES)
        raise InputError(
            f"the activations in {group} are damaged",
            fix="Run the same command again; they are computed again",
        ) from cause

    def is_complete(self, rows: range) -> bool:
        """Whether all chunks of ``rows`` exist in full size."""
        rows_each, *others = self.array.chunks
        size = self.dtype.itemsize * prod(self.array.chunks) + CHECKSUM_BYTES
        tail = ["0"] * len(others)  # only rows are split into chunks
        for number in {row // rows_each for row in rows}:
            try:
                status = os.lstat(self.folder.joinpath("c", str(number), *tail))
            except OSError:
                return False
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                return False
        return True


def _open_group(
    folder: Path, names: tuple[str, ...], selection: PositionSelection, rows: int
) -> Activations | None:
    """The group in ``folder``; None if it does not exist or is incomplete."""
    import zarr

    if folder.is_symlink() or not folder.is_dir():
        return None
    try:
        group = zarr.open_group(folder, mode="r")
        arrays = {name: StoredArray(group[name], folder / name) for name in names}
        for array in arrays.values():
            fits = array.dtype == "float32" and array.array.chunks[1:] == array.shape[1:]
            if not fits or len(array) != rows or not array.is_complete(range(rows)):
                return None
    except (KeyError, ValueError, TypeError, AttributeError, OSError):
        return None  # raised by Zarr for bad metadata
    return Activations(names, arrays, selection.mask)


def _request_key(
    checkpoint: Fingerprinted,
    sequences: Sequences,
    names: tuple[str, ...],
    selection: PositionSelection,
) -> str:
    """sha256, in hex, over everything that the values depend on.

    This includes the configuration: the rotary base and norm constants are no tensors.
    """
    positions = "mean" if selection.index is None else selection.index.tolist()
    mask = None if selection.mask is None else selection.mask.tolist()
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
    """Rows per chunk, balanced so that the last chunk is not nearly empty."""
    chunks = -(-rows // max(1, CHUNK_BYTES // row_bytes))
    return -(-rows // chunks)


def stored_bytes(rows: int, width: int, sites: int) -> int:
    """Size of a group on disk, for one vector per row and site.

    Args:
        width: Length of a vector.
        sites: Number of sites.
    """
    if rows == 0:
        return 0
    chunk = rows_per_chunk(rows, 4 * width)
    array_bytes = -(-rows // chunk) * chunk * 4 * width
    return sites * (array_bytes + DESCRIPTION_BYTES) + DESCRIPTION_BYTES


def _check_unedited(model: nn.Module) -> None:
    if edits_open() or has_foreign_hooks(model):
        raise InputError(
            "the activations of an edited model would be stored as those of the checkpoint",
            expected="a model without hooks, outside patch, steer and project_out",
            fix="Use capture_activations, which stores nothing",
        )
