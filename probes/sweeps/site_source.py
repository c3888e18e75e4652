"""Activations in memory or in a store, read one site at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from evidence.arrays import as_tensor, check_finite, float_tensor
from evidence.errors import InputError


@runtime_checkable
class SiteStore(Protocol):
    """Activations that are read one site at a time."""

    @property
    def sites(self) -> Sequence[str]:
        """Names of the sites."""
        ...

    def site(self, name: str) -> Any:
        """(row, d) of one site."""
        ...


@dataclass(frozen=True)
class Source:
    """Sites by name, from any kind of storage."""

    names: tuple[str, ...]
    n_rows: int
    data: Any

    def read(self, name: str, device: str | None) -> Tensor:
        """(row, d) float64 on the device, checked to be finite."""
        if isinstance(self.data, SiteStore):
            x = self.data.site(name)
        else:
            x = self.data[self.names.index(name)]
        x = as_tensor(x)
        if x.ndim != 2 or len(x) != self.n_rows:
            raise InputError(
                f"site {name} does not have one vector a row",
                expected=f"({self.n_rows}, d)",
                got=str(tuple(x.shape)),
                fix="Choose one position an item, or reshape to (site, item, d)",
            )
        check_finite(x, f"site {name}: the activations")
        return x if device is None else x.to(device)


def open_source(activations: Any) -> Source:
    """Read arrays, tensors and stores in one way.

    Raises:
        InputError: not (site, row, d), or empty.
    """
    if isinstance(activations, SiteStore):
        names = tuple(activations.sites)
        if not names:
            raise InputError("the activations have no site")
        return Source(names, len(activations.site(names[0])), activations)
    data = float_tensor(activations)
    if data.ndim != 3 or 0 in data.shape:
        raise InputError(
            "activations must be (site, row, d) with at least one of each",
            got=f"shape {tuple(data.shape)}",
        )
    names = tuple(f"site.{index}" for index in range(len(data)))
    return Source(names, data.shape[1], data)
