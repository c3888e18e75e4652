"""Record and edit the values at sites during a forward pass.

Everything here is a context manager over forward hooks, which are removed at the end of the
block. Edits affect everything downstream and every recorder of the same site, in whichever order
they were opened. Of two edits of one site, the one opened last acts first.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capture.data.sequences import RUNNING, Padded
from capture.network.discovery.modes import count_hooks as count_hooks
from capture.network.discovery.modes import evaluation_mode as evaluation_mode
from capture.network.sites import Place, Sites, find_sites
from evidence.errors import InputError

Edit = Callable[[Tensor], Tensor]
Positions = Sequence[int] | Tensor | None


class StopForward(Exception):
    """Raised to stop a forward pass early; ``owner`` identifies who raised it."""

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
        model: The model; the caller runs it inside the block.
        select: Function of a site's name and value, (row, position, d) in a language model, that
            returns what to record. By default the whole value.
        stop: Stop the pass once all sites have been recorded. The call of the model then does
            not return; execution continues after the ``with`` block.
        known_sites: The model's sites, if already found.

    Yields:
        Site name to recorded value: a copy, safe from in-place changes. If gradients are
        enabled, the network goes on with it, so that outputs can be differentiated by it. A later
        pass replaces it.

    Raises:
        InputError: a site is unknown, or with ``stop``, was not reached.

    Examples:
        >>> ids = torch.tensor(rows.ids[:4])
        >>> with torch.no_grad(), exhume.record(model, ["resid.0", "head.1.2"]) as got:
        ...     _ = model(ids)
        >>> {site: tuple(value.shape) for site, value in got.items()}
        {'resid.0': (4, 6, 32), 'head.1.2': (4, 6, 8)}
    """

    def copied(name: str, value: Tensor) -> Tensor:
        selected = value if select is None else select(name, value)
        same = selected.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        return selected.clone() if same else selected

    places = _resolve(model, sites, known_sites)
    in_graph = select is None
    with _uncompiled(model), record_places(places, copied, stop=stop, in_graph=in_graph) as values:
        yield values


@contextmanager
def record_places(
    places: Sequence[Place],
    select: Callable[[str, Tensor], Tensor] | None = None,
    *,
    stop: bool = False,
    in_graph: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """``record`` for arbitrary places, without copying values.

    Args:
        places: Places to record; several may share a module.
        select: As in ``record``. By default the tensor itself.
        stop: As in ``record``.
        in_graph: Where gradients are enabled, let the network go on with the recorded copy, so
            that its output can be differentiated by it.

    Yields:
        Name of a place to recorded value.

    Raises:
        InputError: with ``stop``, a place was not reached.
    """
    values: dict[str, Tensor] = {}

    def store(place: Place, tensor: Tensor) -> Tensor | None:
        value = place.read(tensor)
        values[place.name] = value if select is None else select(place.name, value)
        if stop and len(values) == len(places):
            raise StopForward(values)
        if in_graph and torch.is_grad_enabled() and value.requires_grad:
            return place.write(tensor, values[place.name])
        return None

    with _hooked(places, store, front=False):
        try:
            yield values
        except StopForward as signal:
            if signal.owner is not values:
                raise
            return
    missing = [place.name for place in places if place.name not in values]
    if stop and missing:
        raise InputError(
            f"the forward pass never reached {', '.join(missing[:3])}",
            expected="a model that uses all of its blocks",
        )


@contextmanager
def patch(
    model: nn.Module,
    edits: Mapping[str, Tensor | Edit],
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Iterator[None]:
    """Replace the values at sites by given values or by functions of the values.

    Args:
        model: The model; the caller runs it inside the block.
        edits: Site name to a value that broadcasts over the site's, or to a function from the
            site's value to one of the same shape. A value of shape (row, d) at a site of shape
            (row, position, d) holds one vector per row.
        positions: Positions to edit: indices valid for every row (negative ones count from the
            end), a (row,) tensor with one index per row, or a (row, position) boolean mask. None
            means all. Positions refer to the prompt: tokens generated one at a time after it are
            not edited.
        known_sites: The model's sites, if already found.

    Rows and positions are those of the call of the model, padding included; where a function of
    exhume runs ``Sequences`` inside the block, those of the sequences, in their order.

    Raises:
        InputError: a site is unknown, or a shape does not fit.

    Examples:
        >>> ids = torch.tensor(rows.ids[:4])
        >>> with torch.no_grad():
        ...     before = model(ids).logits
        ...     with exhume.patch(model, {"resid.1": torch.zeros_like}, positions=[-1]):
        ...         after = model(ids).logits
        >>> (before != after).any(-1).any(0).tolist()
        [False, False, False, False, False, True]
    """
    places = _resolve(model, edits, known_sites)
    max_length: dict[str, int] = {}
    around = RUNNING.get() is None
    continues: list[bool] = []  # not empty in a pass that continues an earlier one

    def note_cache(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cached = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
        continues[:] = [True] if callable(cached) and cached() else []

    def change(place: Place, tensor: Tensor) -> Tensor | None:
        value = place.read(tensor)
        mask = None
        if positions is not None:
            length = value.shape[1] if value.dim() == 3 else 0
            max_length[place.name] = max(length, max_length.get(place.name, 0))
            if length == 1 and (max_length[place.name] > 1 or continues):
                return None
            mask = _mask(place.name, value, positions, RUNNING.get() if around else None)
        edit = edits[place.name]
        new = edit(value) if callable(edit) else _per_row(edit, value, around)
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
        return place.write(tensor, new)

    tensors = [each for each in edits.values() if isinstance(each, Tensor)]
    by_row = positions is not None or any(each.dim() > 1 for each in tensors)
    owner = getattr(model, "_orig_mod", model)
    noting: AbstractContextManager[Any] = nullcontext()
    if positions is not None:
        noting = owner.register_forward_pre_hook(note_cache, with_kwargs=True)
    with noting, _counted(by_row), _uncompiled(model), _hooked(places, change, front=True):
        yield


_BY_ROW: ContextVar[int] = ContextVar("by_row", default=0)


def by_row_edits() -> bool:
    """Whether an edit is open that differs between rows or positions."""
    return _BY_ROW.get() > 0


@contextmanager
def _counted(by_row: bool) -> Iterator[None]:
    before = _BY_ROW.set(_BY_ROW.get() + by_row)
    try:
        yield
    finally:
        _BY_ROW.reset(before)


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a compiled model without its compiled code, which would pass over new hooks."""
    compiled = hasattr(model, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )
    if not compiled:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def steer(
    model: nn.Module,
    vectors: Mapping[str, Tensor],
    scale: float = 1.0,
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Any:
    """Activation steering: add ``scale`` times a vector at sites. A context manager.

    Args:
        model: The model; the caller runs it inside the block.
        vectors: Site name to a vector (d,), or one vector per row (row, d).
        scale: Factor of the vectors.
        positions: As in ``patch``.
        known_sites: The model's sites, if already found.

    Examples:
        >>> direction = torch.from_numpy(states.site("resid.1")[cities == "Lisbon"].mean(0))
        >>> ids = torch.tensor(rows.ids)[:, :-1]
        >>> with torch.no_grad(), exhume.steer(model, {"resid.1": direction}, scale=4.0):
        ...     said = model(ids).logits[:, -1].argmax(-1)
        >>> tokenizer.decode(said.mode().values)
        'Lisbon'
    """
    edits = {site: _addition(vector, scale) for site, vector in vectors.items()}
    by_row = any(vector.dim() > 1 for vector in vectors.values())
    return _steered(model, edits, positions, known_sites, by_row)


@contextmanager
def _steered(
    model: nn.Module,
    edits: Mapping[str, Edit],
    positions: Positions,
    known_sites: Sites | None,
    by_row: bool,
) -> Iterator[None]:
    with _counted(by_row), patch(model, edits, positions, known_sites=known_sites):
        yield


def project_out(
    model: nn.Module,
    bases: Mapping[str, Tensor],
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Any:
    """Project a subspace out of the values at sites. A context manager.

    Args:
        model: The model; the caller runs it inside the block.
        bases: Site name to directions that span the subspace, (k, d) or (d,). They need not be
            orthogonal, independent or of unit length.
        positions: As in ``patch``.
        known_sites: The model's sites, if already found.

    Examples:
        >>> ids = torch.tensor(rows.ids[:4])
        >>> direction = torch.ones(32)
        >>> with torch.no_grad(), exhume.project_out(model, {"resid.1": direction}):
        ...     with exhume.record(model, ["resid.1"]) as got:
        ...         _ = model(ids)
        >>> bool((got["resid.1"] @ direction).abs().max() < 1e-4)
        True
    """
    edits = {site: _projection(basis) for site, basis in bases.items()}
    return patch(model, edits, positions, known_sites=known_sites)


def first_tensor(output: object) -> Tensor:
    """The hidden states in a block's output, a tensor or a tuple that starts with one.

    Raises:
        InputError: the output does not start with a tensor.
    """
    first = output[0] if isinstance(output, tuple | list) else output
    if not isinstance(first, Tensor):
        raise InputError(
            "a module's output is not hidden states",
            expected="a tensor, or a tuple starting with one",
            got=type(first).__name__,
        )
    return first


def _addition(vector: Tensor, scale: float) -> Edit:
    around = RUNNING.get() is None

    def add(value: Tensor) -> Tensor:
        return value + scale * _per_row(vector, value, around).to(value.device, value.dtype)

    return add


def _projection(basis: Tensor) -> Edit:
    rows = basis.detach().reshape(-1, basis.shape[-1])
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    # Linearly dependent directions have singular values of the order of their precision.
    precision = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 1e-12
    largest = sizes.max() if len(sizes) else 0.0
    span = directions[sizes > largest * max(rows.shape) * precision]

    def remove(value: Tensor) -> Tensor:
        axes = span.to(value.device, value.dtype)
        return value - (value @ axes.T) @ axes

    return remove


def _per_row(edit: Tensor, value: Tensor, around: bool) -> Tensor:
    """Make one vector per row, (row, d), broadcast over (row, position, d).

    Args:
        around: Whether the edit was opened around the runs of all batches, and so has the rows
            of all of them.
    """
    if edit.dim() != 2 or value.dim() != 3:
        return edit
    batch = RUNNING.get() if around else None
    if batch is not None and len(edit) > 1:
        rows = batch.rows.to(edit.device)
        if len(edit) <= int(rows.max()):
            raise InputError(
                "an edit with one vector a row has fewer rows than the sequences",
                expected=f"more than {int(rows.max())}",
                got=str(len(edit)),
            )
        edit = edit[rows]
    return edit[:, None, :]


def _mask(
    site: str, value: Tensor, positions: Sequence[int] | Tensor, batch: Padded | None
) -> Tensor:
    """(row, position) bool, True at edited positions.

    Args:
        batch: The batch that is run, if the positions are those of whole sequences.
    """
    if batch is not None and value.dim() == 3 and batch.attention_mask.shape == value.shape[:2]:
        return _mask_of_rows(site, batch, positions).to(value.device)
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


def _resolve(model: nn.Module, names: Iterable[str], known_sites: Sites | None) -> list[Place]:
    found = known_sites if known_sites is not None else find_sites(model)
    return [found.resolve(name) for name in dict.fromkeys(names)]


def _mask_of_rows(site: str, batch: Padded, positions: Sequence[int] | Tensor) -> Tensor:
    """(row, position) bool of a batch for positions in its sequences, without padding."""
    mask = batch.attention_mask.bool()
    place = mask.cumsum(1) - 1  # position in the row
    lengths = mask.sum(1, keepdim=True)
    requested = torch.as_tensor(positions, device=mask.device)
    rows = batch.rows.to(mask.device)
    if requested.dtype == torch.bool or isinstance(positions, Tensor):
        if requested.dim() == 0 or len(requested) <= int(rows.max()):
            raise InputError(
                f"positions do not fit {site}",
                expected="one entry for each row of the sequences",
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


@contextmanager
def _hooked(
    places: Sequence[Place], callback: Callable[[Place, Tensor], Tensor | None], *, front: bool
) -> Iterator[None]:
    """Call ``callback`` with each place's value; a returned tensor replaces the value."""
    with ExitStack() as stack:
        for place in places:
            changed = callback
            if place.shape_of is not None:
                shape: list[torch.Size] = []
                stack.enter_context(_noting_shape(place.shape_of, shape))
                changed = _unflattened(callback, shape)
            stack.enter_context(_register(place, changed, front=front))
        yield


def _noting_shape(module: nn.Module, shape: list[torch.Size]) -> RemovableHandle:
    """Keep the shape of the module's input in ``shape``."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        shape[:] = [(args[0] if args else kwargs["hidden_states"]).shape]

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _unflattened(
    callback: Callable[[Place, Tensor], Tensor | None], shape: list[torch.Size]
) -> Callable[[Place, Tensor], Tensor | None]:
    """``callback`` on the tensor in another shape."""

    def call(place: Place, tensor: Tensor) -> Tensor | None:
        new = callback(place, tensor.reshape(*shape[0][:-1], -1))
        return None if new is None else new.reshape(tensor.shape)

    return call


def _register(
    place: Place, callback: Callable[[Place, Tensor], Tensor | None], *, front: bool
) -> RemovableHandle:
    def after(module: nn.Module, args: Any, output: Any) -> Any:
        # A block returns a tensor or a tuple that starts with one; indexing a plain
        # tensor would silently select the first row of the batch.
        is_tensor = isinstance(output, Tensor)
        new = callback(place, output if is_tensor else output[0])
        if new is None:
            return None
        return new if is_tensor else (new, *output[1:])

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None
        if not args:
            key = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = callback(place, args[0] if key is None else kwargs[key])
        if new is None:
            return None
        if key is None:
            return (new, *args[1:]), kwargs
        return args, kwargs | {key: new}

    if place.side == "in":
        return place.module.register_forward_pre_hook(before, with_kwargs=True, prepend=front)
    return place.module.register_forward_hook(after, prepend=front)
