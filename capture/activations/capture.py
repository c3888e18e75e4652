"""Activations of many rows at named sites, only where they were asked for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from capture.activations.passes import CaptureTarget, capture_passes, store_batch
from capture.activations.positions import Positions, PositionSelection, select_positions
from capture.data.sequences import Sequences
from capture.network.hooks import evaluation_mode
from capture.network.sites import find_sites
from capture.network.structure import model_device
from evidence.errors import InputError
from evidence.progress import SILENT, Advance, Progress

Pool = Literal["mean", "first", "flat"] | int


@dataclass(frozen=True, eq=False, repr=False)
class Activations:
    """Values at sites for every item, in memory or on disk.

    Attributes:
        sites: Site names, in the order asked for.
        arrays: Site name to (item, d), or (item, position, d) where several positions
            were asked for: NumPy arrays, or Zarr arrays that are read when sliced.
        mask: (item, position), True where there is a value; None with one position an
            item. Values elsewhere are 0.
    """

    sites: tuple[str, ...]
    arrays: Mapping[str, Any]
    mask: np.ndarray | None = None

    def __len__(self) -> int:
        return int(next(iter(self.arrays.values())).shape[0])

    def __repr__(self) -> str:
        shape = tuple(self.arrays[self.sites[0]].shape)
        first, last = self.sites[0], self.sites[-1]
        return f"Activations({len(self.sites)} sites, {first} to {last}; {shape})"

    def site(self, name: str) -> np.ndarray:
        """The values at one site, float32, (item, d) or (item, position, d).

        Raises:
            InputError: the site was not captured.
        """
        if name not in self.arrays:
            raise InputError(
                f"site {name!r} was not captured",
                expected=f"one of {', '.join(self.sites[:6])}",
                got=repr(name),
            )
        return np.asarray(self.arrays[name][:])

    @property
    def values(self) -> np.ndarray:
        """All sites, float32, (site, item, d) or (site, item, position, d).

        Raises:
            InputError: the sites differ in width, so that they do not stack.
        """
        widths = {self.arrays[name].shape[-1] for name in self.sites}
        if len(widths) > 1:
            raise InputError(
                "the sites differ in width and cannot be stacked",
                expected="one width",
                got=", ".join(map(str, sorted(widths))),
                fix="Read them one at a time with site(name)",
            )
        return np.stack([self.site(name) for name in self.sites])

    def chunks(self, name: str, rows: int = 4096) -> Iterator[np.ndarray]:
        """The values at one site, ``rows`` items at a time, in order."""
        for start in range(0, len(self), rows):
            yield np.asarray(self.arrays[name][start : start + rows])


def capture_activations(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str],
    positions: Positions = "last_prompt",
    *,
    subject_end: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    padding: Literal["right", "left"] = "right",
    progress: Progress = SILENT,
) -> Activations:
    """Run ``sequences`` through ``model`` and keep the values at ``sites``.

    The pass ends after the deepest site, the output layer runs on kept positions
    alone and only if "logits" was asked for, and nothing but kept positions outlives
    its batch.

    Args:
        model: Any model ``find_sites`` understands that takes ``input_ids``.
        sequences: The rows; batches are made of rows of similar length.
        sites: Site names.
        positions: See ``select_positions``.
        subject_end: Index of the last subject token of each row, for "last_subject".
        batch_tokens: Padded positions a batch, at most; memory grows with it. On a CPU a
            batch of more than ``passes.CPU_TOKENS_PER_THREAD`` a thread would be no faster and is
            cut, unless rows go on from a beginning that they share.
        padding: The side rows are padded on. Results do not depend on it.
        progress: Where to show progress.

    Returns:
        float32 values, item by item in the order of ``sequences``.

    Raises:
        InputError: an unknown site or name, or a row without the position.
    """
    wanted = select_positions(sequences, positions, subject_end)
    with progress.task("activations", len(sequences)) as advance:
        arrays = capture_selected(
            model,
            sequences,
            sites,
            wanted,
            batch_tokens=batch_tokens,
            padding=padding,
            advance=advance,
        )
    return Activations(tuple(arrays), arrays, wanted.mask)


def capture_selected(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str],
    selection: PositionSelection,
    *,
    batch_tokens: int = 4096,
    padding: Literal["right", "left"] = "right",
    advance: Advance = lambda amount: None,
) -> dict[str, np.ndarray]:
    """As ``capture_activations``, with the positions already worked out.

    ``advance`` is called with the number of rows done.
    """
    target = _target(model, sites)
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad(), evaluation_mode(model):
        for rows, got in capture_passes(
            target, sequences, selection, batch_tokens, padding
        ):
            store_batch(arrays, got, rows, len(sequences), selection)
            advance(len(rows))
    return {name: arrays[name] for name in target.names}


def capture_images(
    model: nn.Module,
    pixels: Tensor,
    sites: Sequence[str],
    pool: Pool = "mean",
    *,
    batch_size: int = 64,
    progress: Progress = SILENT,
) -> Activations:
    """Run images through ``model`` and keep one vector an image at each site.

    Args:
        model: A vision transformer, a convolutional network or a plain one.
        pixels: (image, channel, height, width), or what the model takes.
        sites: Site names.
        pool: What becomes of the places inside an image: their "mean", the "first"
            one (the class token of a vision transformer) or the one of that index,
            or all of them side by side, "flat". Feature maps (channel, height, width)
            are places row by row. Without effect where a site has one vector an image.
        batch_size: Images a pass.
        progress: Where to show progress.

    Raises:
        InputError: an unknown site, or no images.
    """
    target = _target(model, sites)
    if len(pixels) == 0:
        raise InputError("there are no images", expected="one or more")
    device = model_device(model)
    arrays: dict[str, np.ndarray] = {}
    with (
        torch.no_grad(),
        evaluation_mode(model),
        progress.task("activations", len(pixels)) as advance,
    ):
        for start in range(0, len(pixels), batch_size):
            part = pixels[start : start + batch_size].to(device)
            got = target.run(lambda _, v: _pooled(v, pool), part)
            rows = np.arange(start, start + len(part))
            store_batch(arrays, got, rows, len(pixels), None)
            advance(len(part))
    names = target.names
    return Activations(names, {name: arrays[name] for name in names})


def _target(model: nn.Module, sites: Sequence[str]) -> CaptureTarget:
    where = find_sites(model)
    names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    if not names:
        raise InputError("no sites were asked for", expected="one or more")
    for name in names:
        where.resolve(name)
    return CaptureTarget(model, where, names)


def _pooled(value: Tensor, pool: Pool) -> Tensor:
    """(image, d) from (image, place, d) or from feature maps (image, d, ...)."""
    if value.dim() == 2:
        return value
    if pool == "flat":
        return value.flatten(1)
    places = value.flatten(2).transpose(1, 2) if value.dim() > 3 else value
    if pool == "mean":
        return places.mean(1)
    place = 0 if pool == "first" else pool
    if not isinstance(place, int) or not -places.shape[1] <= place < places.shape[1]:
        raise InputError(
            "the pool is unknown or lies outside the image",
            expected=f"mean, first, flat or an index under {places.shape[1]}",
            got=repr(pool),
        )
    return places[:, place]
