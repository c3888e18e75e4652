"""Which rows and positions of a site's value an edit changes.

An edit that was opened around a function of exhume, which batches rows by itself, is indexed by
the rows and positions of the sequences; one around a call of the model, by those of the call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from capture.data.sequences import RUNNING, Run
from evidence.errors import InputError


def per_row(edit: Tensor, value: Tensor, around: bool) -> Tensor:
    """Make values of rows, (row, d) or (row, position, d), broadcast over (row, position, d).

    Args:
        around: Whether the edit was opened around the runs of all batches, and so has the rows
            of all of them.

    Raises:
        InputError: the edit has another number of rows than the sequences.
    """
    if edit.dim() not in (2, 3) or value.dim() != 3:
        return edit
    run = RUNNING.get() if around else None
    if run is not None and len(edit) > 1:
        if len(edit) != run.count:
            raise InputError(
                "an edit with values a row has another number of rows than the sequences",
                expected=f"{run.count} rows, or one vector for all",
                got=f"{len(edit)} rows",
            )
        edit = edit[run.batch.rows.to(edit.device)]
        # A later batch may be padded less.
        edit = edit if edit.dim() == 2 else edit[:, : value.shape[1]]
    return edit if edit.dim() == 3 else edit[:, None, :]


def position_mask(
    site: str, value: Tensor, positions: Sequence[int] | Tensor, run: Run | None
) -> Tensor:
    """(row, position) bool, True at edited positions.

    Args:
        run: What is run, if the positions are those of whole sequences.

    Raises:
        InputError: the positions do not fit the rows, or the site has none.
    """
    if run is not None and value.dim() == 3 and run.batch.attention_mask.shape == value.shape[:2]:
        return _mask_of_rows(site, run, positions).to(value.device)
    if value.dim() != 3:
        raise InputError(
            f"{site} has no positions",
            expected="a value of shape (row, position, d)",
            got=str(tuple(value.shape)),
            fix="Leave positions out",
        )
    rows, length, _ = value.shape
    all_positions = torch.arange(length, device=value.device)
    requested = torch.as_tensor(positions, device=value.device)
    if requested.dtype == torch.bool:
        if requested.shape != (rows, length):
            raise InputError(
                f"the mask of positions does not fit {site}",
                expected=str((rows, length)),
                got=str(tuple(requested.shape)),
            )
        return requested
    if requested.numel() and not -length <= int(requested.min()) <= int(requested.max()) < length:
        raise InputError(
            f"a position lies outside the rows at {site}",
            expected=f"{-length} to {length - 1}",
            got=f"{int(requested.min())} to {int(requested.max())}",
        )
    requested = requested % length
    if isinstance(positions, Tensor):
        if requested.shape != (rows,):
            raise InputError(
                f"positions do not fit {site}",
                expected=f"one index for each of the {rows} rows, as a (row,) tensor",
                got=str(tuple(requested.shape)),
            )
        return requested[:, None] == all_positions
    return torch.isin(all_positions, requested).expand(rows, length)


def _mask_of_rows(site: str, run: Run, positions: Sequence[int] | Tensor) -> Tensor:
    """(row, position) bool of a batch for positions in its sequences, without padding."""
    batch = run.batch
    mask = batch.attention_mask.bool()
    place = mask.cumsum(1) - 1  # position in the row
    lengths = mask.sum(1, keepdim=True)
    requested = torch.as_tensor(positions, device=mask.device)
    rows = batch.rows.to(mask.device)
    if requested.dtype == torch.bool or isinstance(positions, Tensor):
        if requested.dim() == 0 or len(requested) != run.count:
            raise InputError(
                f"positions do not fit {site}",
                expected=f"one entry for each of the {run.count} rows of the sequences",
                got=str(tuple(requested.shape)),
            )
        requested = requested[rows]
    else:
        requested = requested.expand(len(rows), -1)
    if requested.dtype == torch.bool:
        if requested.dim() != 2 or requested.shape[1] < int(lengths.max()):
            raise InputError(
                f"the mask of positions does not fit {site}",
                expected=f"one entry for each of {int(lengths.max())} positions",
                got=str(tuple(requested.shape)),
            )
        return mask & requested.gather(1, place.clamp(min=0))
    wanted = requested if requested.dim() == 2 else requested[:, None]
    if bool(((wanted < -lengths) | (wanted >= lengths)).any()):
        raise InputError(
            f"a position lies outside the rows at {site}",
            expected=f"{-int(lengths.min())} to {int(lengths.min()) - 1}",
            got=f"{int(wanted.min())} to {int(wanted.max())}",
        )
    wanted = torch.where(wanted < 0, wanted + lengths, wanted)
    return mask & (place[..., None] == wanted[:, None, :]).any(-1)
