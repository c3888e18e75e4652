"""A (row, d) view of stored activations, for training autoencoders."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capture.activations.capture import Activations
from evidence.errors import InputError


class StoredRows:
    """The activations at one site, one row per stored position, read when sliced.

    Attributes:
        shape: (row, d), as of an array.
    """

    def __init__(self, activations: Activations, site: str):
        """Count the positions of each item; no value is read yet.

        Args:
            activations: In memory or in the store; one or several positions per item.
            site: Name of the site.

        Raises:
            InputError: The site was not captured, or its values do not have one width.
        """
        if site not in activations.arrays:
            raise InputError(
                f"site {site!r} was not captured",
                expected=f"one of {', '.join(activations.sites[:6])}",
                got=repr(site),
            )
        self._values: Any = activations.arrays[site]
        shape = tuple(self._values.shape)
        if len(shape) not in (2, 3):
            raise InputError(
                f"the values at {site} are no rows of one width",
                expected="(item, d) or (item, position, d)",
                got=str(shape),
            )
        places = shape[1] if len(shape) == 3 else 1
        mask = np.ones((shape[0], places), dtype=bool)
        if len(shape) == 3 and activations.mask is not None:
            mask = activations.mask
        self._mask: NDArray[np.bool_] = mask
        # Index of the first row of each item, and the number of rows.
        self._starts = np.concatenate([[0], mask.sum(1).cumsum()])
        self.shape = (int(self._starts[-1]), int(shape[-1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """(row, d) float32 values of a contiguous range of rows.

        Raises:
            InputError: The slice has a step other than 1.
        """
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise InputError(
                "stored rows are read as runs", expected="a step of 1", got=str(step)
            )
        if stop <= start:
            return np.zeros((0, self.shape[1]), dtype=np.float32)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        values = np.asarray(self._values[first:last], dtype=np.float32)
        flat = values.reshape(-1, self.shape[1])[self._mask[first:last].ravel()]
        skipped = start - int(self._starts[first])
        return flat[skipped : skipped + stop - start]
