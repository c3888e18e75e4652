"""Reading and changing a network while it runs, leaving it as it was found.

Everything here is a context manager over plain forward hooks. The hooks go when the
block ends, however it ends. An edit is seen by everything downstream and by every
recorder of the same site, whichever was opened first; of two edits of one site, the
one opened last acts first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capture.network.discovery.modes import count_hooks as count_hooks
from capture.network.discovery.modes import evaluation_mode as evaluation_mode
from capture.network.sites import Place, Sites, find_sites
from evidence.errors import InputError

Edit = Callable[[Tensor], Tensor]
Positions = Sequence[int] | Tensor | None


class StopForward(Exception):
    """Ends a forward pass in which nothing more is needed, for the one who said so."""

    def __init__(self, owner: object):
        super().__init__("the forward pass was stopped on purpose")
        self.owner = owner


@contextmanager
def record(
    model: nn.Module,
    sites: Iterable[str],
    select: Callable[[str, Tensor], Tensor] | None = None,
    *,
    stop: bool = False,
    known_sites: Sites | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Record the values at ``sites`` in each forward pass run inside the block.

    Args:
        model: The model; it is run by the caller, inside the block.
        sites: Site names.
        select: Called with a site's name and value, (row, position, d) in a language
            model; what it returns is kept. By default the whole value.
        stop: End the pass once every site has been seen. The call of the model then
            does not return: the block ends there, and goes on after the ``with``.
        known_sites: The model's sites, if already found.

    Yields:
        Site name to recorded value, a copy that later in-place changes cannot reach,
        attached to the graph where gradients are on. A later pass replaces it.

    Raises:
        InputError: a site is unknown, or with ``stop`` was never reached.
    """

    def copied(name: str, value: Tensor) -> Tensor:
        kept = value if select is None else select(name, value)
        same = kept.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        return kept.clone() if same else kept

    places = _resolve(model, sites, known_sites)
    with record_places(places, copied, stop=stop) as got:
        yield got


@contextmanager
def record_places(
    places: Sequence[Place],
    select: Callable[[str, Tensor], Tensor] | None = None,
    *,
    stop: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """As ``record``, at places that need be no sites, and without a copy.

    Args:
        places: Where to read; a module may carry several.
        select: As in ``record``. By default the very tensor that the module carries.
        stop: As in ``record``.

    Yields:
        Name of a place to recorded value.

    Raises:
        InputError: with ``stop``, a place was never reached.
    """
    got: dict[str, Tensor] = {}

    def see(place: Place, carried: Tensor) -> None:
        value = place.read(carried)
        got[place.name] = value if select is None else select(place.name, value)
        if stop and len(got) == len(places):
            raise StopForward(got)

    with _hooked(places, see, front=False):
        try:
            yield got
        except StopForward as signal:
            if signal.owner is not got:
                raise
            return
    missing = [place.name for place in places if place.name not in got]
    if stop and missing:
        raise InputError(
            f"the forward pass never reached {', '.join(missing[:3])}",
            expected="a model that uses every one of its blocks",
        )


@contextmanager
def patch(
    model: nn.Module,
    edits: Mapping[str, Tensor | Edit],
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Iterator[None]:
    """Replace the value at sites by other values, or by a function of themselves.

    Args:
        model: The model; it is run by the caller, inside the block.
        edits: Site name to a value that broadcasts over the site's, or to a function
            from the site's whole value to one of the same shape. A value of shape
            (row, d) at a site of shape (row, position, d) is one vector a row.
        positions: Where in the rows: indices valid for every row (negative ones count
            from the end of the padded row), a (row,) tensor with one index a row, or
            a (row, position) boolean mask. None means everywhere. Positions belong
            to the prompt: single tokens generated after it are left alone.
        known_sites: The model's sites, if already found.

    Raises:
        InputError: a site is unknown, or a shape does not fit.
    """
    places = _resolve(model, edits, known_sites)
    longest: dict[str, int] = {}

    def change(place: Place, carried: Tensor) -> Tensor | None:
        value = place.read(carried)
        mask = None
        if positions is not None:
            length = value.shape[1] if value.dim() == 3 else 0
            longest[place.name] = max(length, longest.get(place.name, 0))
            if length == 1 and longest[place.name] > 1:
                return None
            mask = _mask(place.name, value, positions)
        edit = edits[place.name]
        new = edit(value) if callable(edit) else _spread(edit, value)
        new = new.to(dtype=value.dtype, device=value.device)
        if new.shape != value.shape:
            try:
                new = new.expand_as(value)
            except RuntimeError as error:
                raise InputError(
                    f"the edit at {place.name} has a shape that does not fit",
                    expected=str(tuple(value.shape)),
                    got=str(tuple(new.shape)),
                ) from error
        if mask is not None:
            new = torch.where(mask[..., None], new, value)
        return place.write(carried, new)

    with _hooked(places, change, front=True):
        yield


def steer(
    model: nn.Module,
    vectors: Mapping[str, Tensor],
    scale: float = 1.0,
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Any:
    """Add ``scale`` times a vector at sites: a context manager, as ``patch`` is.

    Args:
        model: The model; it is run by the caller, inside the block.
        vectors: Site name to a vector (d,), or one a row (row, d).
        scale: What the vectors are multiplied by.
        positions: As in ``patch``.
        known_sites: The model's sites, if already found.
    """
    edits = {site: _adder(vector, scale) for site, vector in vectors.items()}
    return patch(model, edits, positions, known_sites=known_sites)


def project_out(
    model: nn.Module,
    bases: Mapping[str, Tensor],
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Any:
    """Remove a subspace from the values at sites: a context manager, as ``patch`` is.

    Args:
        model: The model; it is run by the caller, inside the block.
        bases: Site name to directions that span the subspace, (k, d) or (d,); they
            need be neither orthogonal, independent nor of unit length.
        positions: As in ``patch``.
        known_sites: The model's sites, if already found.
    """
    edits = {site: _remover(basis) for site, basis in bases.items()}
    return patch(model, edits, positions, known_sites=known_sites)


def first_tensor(output: object) -> Tensor:
    """The hidden states in a block's output, a tensor or a tuple that starts with it.

    Raises:
        InputError: the output holds no tensor first.
    """
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise InputError(
            "a module's output is not hidden states",
            expected="a tensor, or a tuple starting with one",
            got=type(first).__name__,
        )
    return first


def _adder(vector: Tensor, scale: float) -> Edit:
    def add(value: Tensor) -> Tensor:
        return value + scale * _spread(vector, value).to(value.device, value.dtype)

    return add


def _remover(basis: Tensor) -> Edit:
    rows = basis.detach().reshape(-1, basis.shape[-1])
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    # Directions that depend on others do so only to the precision they came in.
    precision = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 1e-12
    largest = sizes.max() if len(sizes) else 0.0
    span = directions[sizes > largest * max(rows.shape) * precision]

    def remove(value: Tensor) -> Tensor:
        axes = span.to(value.device, value.dtype)
        return value - (value @ axes.T) @ axes

    return remove


def _spread(edit: Tensor, value: Tensor) -> Tensor:
    """One vector a row, (row, d), made to broadcast over (row, position, d)."""
    one_a_row = edit.dim() == 2 and value.dim() == 3
    return edit[:, None, :] if one_a_row else edit


def _mask(site: str, value: Tensor, positions: Sequence[int] | Tensor) -> Tensor:
    """(row, position), True where an edit applies."""
    if value.dim() != 3:
        raise InputError(
            f"{site} has no positions",
            expected="a value of shape (row, position, d)",
            got=str(tuple(value.shape)),
            fix="Leave positions out",
        )
    rows, length, _ = value.shape
    places = torch.arange(length, device=value.device)
    wanted = torch.as_tensor(positions, device=value.device)
    if wanted.dtype == torch.bool:
        if wanted.shape != (rows, length):
            raise InputError(
                f"the mask of positions does not fit {site}",
                expected=str((rows, length)),
                got=str(tuple(wanted.shape)),
            )
        return wanted
    if (
        wanted.numel()
        and not -length <= int(wanted.min()) <= int(wanted.max()) < length
    ):
        raise InputError(
            f"a position lies outside the rows at {site}",
            expected=f"{-length} to {length - 1}",
            got=f"{int(wanted.min())} to {int(wanted.max())}",
        )
    wanted = wanted % length
    if isinstance(positions, Tensor):
        if wanted.shape != (rows,):
            raise InputError(
                f"positions do not fit {site}",
                expected=f"one index for each of the {rows} rows, as a (row,) tensor",
                got=str(tuple(wanted.shape)),
            )
        return wanted[:, None] == places
    return torch.isin(places, wanted).expand(rows, length)


def _resolve(
    model: nn.Module, names: Iterable[str], where: Sites | None
) -> list[Place]:
    found = where if where is not None else find_sites(model)
    return [found.resolve(name) for name in dict.fromkeys(names)]


@contextmanager
def _hooked(
    places: Sequence[Place],
    act: Callable[[Place, Tensor], Tensor | None],
    *,
    front: bool,
) -> Iterator[None]:
    """Call ``act`` with what each place carries; a tensor it returns replaces that."""
    handles: list[RemovableHandle] = []
    try:
        for place in places:
            handles.append(_register(place, act, front=front))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _register(
    place: Place, act: Callable[[Place, Tensor], Tensor | None], *, front: bool
) -> RemovableHandle:
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        # A block may return a plain tensor or a tuple that begins with it; indexing
        # a plain tensor would silently take the first row of the batch.
        whole = isinstance(output, Tensor)
        new = act(place, output if whole else output[0])
        if new is None:
            return None
        return new if whole else (new, *output[1:])

    def before(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        key = None
        if not args:
            key = "hidden_states" if "hidden_states" in named else next(iter(named))
        new = act(place, args[0] if key is None else named[key])
        if new is None:
            return None
        if key is None:
            return (new, *args[1:]), named
        return args, named | {key: new}

    if place.side == "in":
        return place.module.register_forward_pre_hook(
            before, with_kwargs=True, prepend=front
        )
    return place.module.register_forward_hook(after, prepend=front)
