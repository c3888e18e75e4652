"""Capture of activations at named sites and selected positions."""

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
from capture.network.model_inputs import plain_inputs
from capture.network.sites import find_sites
from capture.network.structure import model_device
from evidence.display.html_table import MAX_ROWS, table_html
from evidence.errors import InputError
from evidence.progress import AUTO, Advance, Progress, as_progress

Pool = Literal["mean", "first", "flat"] | int


@dataclass(frozen=True, eq=False, repr=False)
class Activations:
    """Activations of all items at several sites, in memory or on disk.

    Attributes:
        sites: Site names, in the requested order.
        arrays: Site name to (item, d), or (item, position, d) for several positions: NumPy
            arrays, or Zarr arrays that are read when sliced. In place of d, an attention pattern
            has (head, key); keys behind the end of a row are 0.
        mask: (item, position) bool, True where there is a value; other values are 0. None for
            one position per item.

    Examples:
        >>> states.sites, len(states), states.values.shape
        (('resid.0', 'resid.1'), 76, (2, 76, 32))
        >>> [len(chunk) for chunk in states.chunks("resid.0", rows=50)]
        [50, 26]
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

    def _repr_html_(self) -> str:
        rows = [(name, str(tuple(self.arrays[name].shape))) for name in self.sites]
        return table_html(repr(self), ("site", "shape"), rows[:MAX_ROWS], len(rows) - MAX_ROWS)

    def site(self, name: str) -> np.ndarray:
        """Activations at one site, float32, (item, d) or (item, position, d).

        Positions are those of each row, padded with 0 at its end where ``mask`` is False.

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

    def nested(self, name: str) -> Tensor:
        """Activations at one site without padding: a nested tensor (item, ragged position, d).

        Raises:
            InputError: the site was not captured, or with one position per item.
        """
        if self.mask is None:
            raise InputError(
                "there is one position per item, and nothing to nest",
                expected='activations at several positions, such as positions="all"',
            )
        rows = [torch.from_numpy(r[m]) for r, m in zip(self.site(name), self.mask, strict=True)]
        return torch.nested.nested_tensor(rows, layout=torch.jagged)

    @property
    def values(self) -> np.ndarray:
        """Activations at all sites, float32, (site, item, d) or (site, item, position, d).

        Raises:
            InputError: the sites differ in width and cannot be stacked.
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
        """Activations at one site, ``rows`` items at a time, in order."""
        for start in range(0, len(self), rows):
            yield np.asarray(self.arrays[name][start : start + rows])


@plain_inputs
def capture_activations(
    model: nn.Module,
    sequences: Sequences,
    sites: Sequence[str],
    positions: Positions = "last_prompt",
    *,
    subject_end: Sequence[int] | None = None,
    batch_tokens: int = 4096,
    padding: Literal["right", "left"] = "right",
    progress: Progress = AUTO,
) -> Activations:
    """Run ``sequences`` through ``model`` and return the activations at ``sites``.

    The pass stops after the deepest site. The output layer runs only for "logits", at the
    selected positions. Only selected positions are kept in memory after each batch.

    Args:
        model: A model with ``input_ids`` that ``find_sites`` supports; live models of
            TransformerLens, nnsight and PEFT too.
        sequences: The rows, or what ``capture.network.model_inputs.as_rows`` makes rows of: texts,
            token ids or the output of a tokenizer. Batches hold rows of similar length, in the
            caller's order while a hook of the caller is registered.
        positions: See ``select_positions``.
        subject_end: Index of the last subject token of each row, for "last_subject".
        batch_tokens: Maximum number of padded positions per batch. On a CPU, batches are also
            limited to ``passes.CPU_TOKENS_PER_THREAD`` per thread, unless rows share a prefix.
        padding: Padding side; results do not depend on it.

    Returns:
        float32 activations in the order of ``sequences``.

    Raises:
        InputError: a site or position name is unknown, or a row lacks the position.

    Examples:
        >>> states = exhume.capture_activations(model, rows, ["embed", "resid.1"])
        >>> states
        Activations(2 sites, embed to resid.1; (76, 32))
        >>> states.site("resid.1").shape
        (76, 32)
        >>> exhume.capture_activations(model, rows, ["resid.1"], positions=[0, -1]).values.shape
        (1, 76, 2, 32)
        >>> exhume.capture_activations(model, rows[:2], ["pattern.1"]).site("pattern.1").shape
        (2, 4, 6)
        >>> exhume.capture_activations(model, rows[:2], ["neurons.1"], "all").values.shape
        (1, 2, 6, 128)
    """
    selection = select_positions(sequences, positions, subject_end)
    with as_progress(progress).task("activations", len(sequences)) as advance:
        arrays = capture_selected(
            model,
            sequences,
            sites,
            selection,
            batch_tokens=batch_tokens,
            padding=padding,
            advance=advance,
        )
    return Activations(tuple(arrays), arrays, selection.mask)


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
    """``capture_activations`` for a resolved selection of positions.

    ``advance`` is called with the number of finished rows.
    """
    target = _target(model, sites)
    arrays: dict[str, np.ndarray] = {}
    with torch.no_grad(), evaluation_mode(model):
        for rows, values in capture_passes(target, sequences, selection, batch_tokens, padding):
            store_batch(arrays, values, rows, len(sequences), selection)
            advance(len(rows))
    return {name: arrays[name] for name in target.names}


@plain_inputs
def capture_images(
    model: nn.Module,
    pixels: Tensor,
    sites: Sequence[str],
    pool: Pool = "mean",
    *,
    batch_size: int = 64,
    progress: Progress = AUTO,
) -> Activations:
    """Run images through ``model`` and return one vector per image at each site.

    Args:
        model: A vision transformer, a convolutional network or an MLP.
        pixels: (image, channel, height, width), or another input of the model.
        pool: Reduction over the positions of an image: their "mean", the "first" one (the class
            token of a vision transformer), the one at an index, or "flat" for all concatenated.
            Feature maps (channel, height, width) are flattened row by row. No effect at a site
            with one vector per image.
        batch_size: Images per pass.

    Raises:
        InputError: a site is unknown, or there are no images.

    Examples:
        >>> classifier = exhume.open_checkpoint("classifier").load()
        >>> images = torch.rand(5, 1, 8, 8)
        >>> exhume.capture_images(classifier, images, ["resid.0", "resid.1"])
        Activations(2 sites, resid.0 to resid.1; (5, 48))
    """
    target = _target(model, sites)
    if len(pixels) == 0:
        raise InputError("there are no images", expected="one or more")
    device = model_device(model)
    arrays: dict[str, np.ndarray] = {}
    with (
        torch.no_grad(),
        evaluation_mode(model),
        as_progress(progress).task("activations", len(pixels)) as advance,
    ):
        for start in range(0, len(pixels), batch_size):
            batch = pixels[start : start + batch_size].to(device)
            values = target.run(lambda _, v: _pooled(v, pool), batch)
            rows = np.arange(start, start + len(batch))
            store_batch(arrays, values, rows, len(pixels), None)
            advance(len(batch))
    names = target.names
    return Activations(names, {name: arrays[name] for name in names})


def _target(model: nn.Module, sites: Sequence[str]) -> CaptureTarget:
    known_sites = find_sites(model)
    names = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    if not names:
        raise InputError("no sites were asked for", expected="one or more")
    for name in names:
        known_sites.resolve(name)
    return CaptureTarget(model, known_sites, names)


def _pooled(value: Tensor, pool: Pool) -> Tensor:
    """Reduce (image, position, d) or feature maps (image, d, ...) to (image, d)."""
    if value.dim() == 2:
        return value
    if pool == "flat":
        return value.flatten(1)
    positions = value.flatten(2).transpose(1, 2) if value.dim() > 3 else value
    if pool == "mean":
        return positions.mean(1)
    position = 0 if pool == "first" else pool
    if not isinstance(position, int) or not -positions.shape[1] <= position < positions.shape[1]:
        raise InputError(
            "the pool is unknown or lies outside the image",
            expected=f"mean, first, flat or an index under {positions.shape[1]}",
            got=repr(pool),
        )
    return positions[:, position]
