"""Record and edit the values at sites during a forward pass.

Everything here is a context manager over forward hooks, which are removed at the end of the
block. Edits affect everything downstream and every recorder of the same site, in whichever order
they were opened. Of two edits of one site, the one opened last acts first.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from capture.data.sequences import RUNNING
from capture.network.discovery.modes import count_hooks as count_hooks
from capture.network.discovery.modes import evaluation_mode as evaluation_mode
from capture.network.edits.positions import per_row, position_mask
from capture.network.edits.row_order import editing_by_row
from capture.network.model_inputs import plain_inputs
from capture.network.patterns import calling_patterns
from capture.network.sites import Place, Sites, find_sites
from evidence.errors import InputError

Edit = Callable[[Tensor], Tensor]
Positions = Sequence[int] | Tensor | None


class StopForward(Exception):
    """Raised to stop a forward pass early; ``owner`` identifies who raised it."""

    def __init__(self, owner: object):
        super().__init__("the forward pass was stopped on purpose")
        self.owner = owner


@plain_inputs
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
    with _uncompiled(), record_places(places, copied, stop=stop, in_graph=in_graph) as values:
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
            for edits in _OPEN.get():
                edits.stopped = True
            return
    missing = [place.name for place in places if place.name not in values]
    if stop and missing:
        raise InputError(
            f"the forward pass never reached {', '.join(missing[:3])}",
            expected="a model that uses all of its blocks",
        )


@plain_inputs
@contextmanager
def patch(
    model: nn.Module,
    edits: Mapping[str, Tensor | np.ndarray | Edit],
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Iterator[None]:
    """Replace the values at sites by given values or by functions of the values.

    Args:
        model: The model; the caller runs it inside the block.
        edits: Site name to a value that broadcasts over the site's, a tensor or an array, or to a
            function from the site's value to one of the same shape. A value of shape (row, d) at a
            site of shape (row, position, d) holds one vector per row.
        positions: Positions to edit: indices valid for every row (negative ones count from the
            end), a (row,) tensor with one index per row, or a (row, position) boolean mask. None
            means all. Positions refer to the prompt: tokens generated one at a time after it are
            not edited.
        known_sites: The model's sites, if already found.

    Rows and positions are those of the call of the model, padding included; where a function of
    exhume runs ``Sequences`` inside the block, those of the sequences, in their order. There, a
    function of the values sees whole rows in the order of the sequences, padded on the right, in
    batches of at most ``batch_tokens`` positions.

    Raises:
        InputError: a site is unknown, or a shape does not fit; or, at the end of the block, an
            edit was never applied, since the model did not run or does not pass through the site.

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
    given = {name: _tensor_or_function(name, edit) for name, edit in edits.items()}
    max_length: dict[str, int] = {}
    around = RUNNING.get() is None
    applied = _Applied()
    continues: list[bool] = []  # not empty in a pass that continues an earlier one

    def note_cache(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cached = getattr(kwargs.get("past_key_values"), "get_seq_length", None)
        continues[:] = [True] if callable(cached) and cached() else []

    def change(place: Place, tensor: Tensor) -> Tensor | None:
        applied.sites.add(place.name)
        value = place.read(tensor)
        mask = None
        if positions is not None:
            length = value.shape[1] if value.dim() == 3 else 0
            max_length[place.name] = max(length, max_length.get(place.name, 0))
            if length == 1 and (max_length[place.name] > 1 or continues):
                return None
            mask = position_mask(place.name, value, positions, RUNNING.get() if around else None)
        edit = given[place.name]
        new = per_row(edit, value, around) if isinstance(edit, Tensor) else edit(value)
        new = _fitted(place.name, new, value)
        if mask is not None:
            new = torch.where(mask[..., None], new, value)
        return place.write(tensor, new)

    by_row = positions is not None or any(_may_differ_by_row(each) for each in given.values())
    noting: AbstractContextManager[Any] = nullcontext()
    if positions is not None:
        noting = model.register_forward_pre_hook(note_cache, with_kwargs=True)
    token = _OPEN.set((*_OPEN.get(), applied))
    try:
        with noting, editing_by_row(by_row), _uncompiled(), _hooked(places, change, front=True):
            yield
    finally:
        _OPEN.reset(token)
    applied.check(edits)


@dataclass
class _Applied:
    """What became of the edits of one ``patch``."""

    sites: set[str] = field(default_factory=set)
    stopped: bool = False

    def check(self, edits: Iterable[str]) -> None:
        """Raise an error if an edit had no chance to act; a pass stopped early gives it none."""
        missed = [name for name in edits if name not in self.sites]
        if not missed or self.stopped:
            return
        names = ", ".join(missed[:3])
        raise InputError(
            f"the edit at {names} was never applied"
            + ("" if self.sites else ": the model that it is for did not run inside the block"),
            expected="a call of the model, or of a function of exhume with it, inside the block",
            got="no value at the site",
            fix="Run the model that was given to the edit, not a copy or an exported version of it",
        )


_OPEN: ContextVar[tuple[_Applied, ...]] = ContextVar("open_edits", default=())


def _tensor_or_function(site: str, edit: Any) -> Any:
    """An edit as a tensor or a function.

    Raises:
        InputError: it is something else, or not finite.
    """
    if isinstance(edit, np.ndarray | list | tuple | float | int):
        try:
            edit = torch.as_tensor(np.asarray(edit, dtype=np.float32))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the edit at {site} is not numeric", expected="a vector", got=type(edit).__name__
            ) from error
    if isinstance(edit, Tensor):
        if not bool(torch.isfinite(edit).all()):
            raise InputError(f"the edit at {site} holds NaN or infinity", expected="finite numbers")
        return edit
    if not callable(edit):
        raise InputError(
            f"the edit at {site} is of an unknown kind",
            expected="a tensor, an array, or a function of the site's value",
            got=type(edit).__name__,
        )
    return edit


def _fitted(site: str, new: Any, value: Tensor) -> Tensor:
    """The new value with the type and shape of the old one."""
    if not isinstance(new, Tensor):
        raise InputError(
            f"the edit at {site} returned no tensor", expected="a tensor", got=type(new).__name__
        )
    new = new.to(dtype=value.dtype, device=value.device)
    if new.shape == value.shape:
        return new
    try:
        return new.expand_as(value)
    except RuntimeError as error:
        raise InputError(
            f"the edit at {site} has a shape that does not fit",
            expected=str(tuple(value.shape)),
            got=str(tuple(new.shape)),
        ) from error


def same_everywhere(edit: Edit) -> Edit:
    """Say that a function treats all rows and positions alike, so that passes may order them."""
    edit.same_everywhere = True  # pyright: ignore[reportFunctionMemberAccess]
    return edit


def _may_differ_by_row(edit: Tensor | Edit) -> bool:
    """Whether an edit may treat rows or positions differently.

    A function may, unless ``same_everywhere`` says otherwise.
    """
    if isinstance(edit, Tensor):
        return edit.dim() > 1
    return not getattr(edit, "same_everywhere", False)


def _uncompiled() -> AbstractContextManager[Any]:
    """Run no compiled code, which would pass over new hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@plain_inputs
def steer(
    model: nn.Module,
    vectors: Mapping[str, Tensor | np.ndarray],
    scale: float = 1.0,
    positions: Positions = None,
    *,
    known_sites: Sites | None = None,
) -> Any:
    """Activation steering: add ``scale`` times a vector at sites. A context manager.

    Args:
        model: The model; the caller runs it inside the block.
        vectors: Site name to a vector (d,), or one vector per row (row, d); tensors or arrays.
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
    edits = {site: _addition(site, vector, scale) for site, vector in vectors.items()}
    return patch(model, edits, positions, known_sites=known_sites)


@plain_inputs
def project_out(
    model: nn.Module,
    bases: Mapping[str, Tensor | np.ndarray],
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
    edits = {site: _projection(site, basis) for site, basis in bases.items()}
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


def _addition(site: str, vector: Any, scale: float) -> Edit:
    around = RUNNING.get() is None
    added = _vectors(site, vector)

    def add(value: Tensor) -> Tensor:
        if added.shape[-1] != value.shape[-1]:
            raise InputError(
                f"the vector has another width than {site}",
                expected=str(value.shape[-1]),
                got=str(added.shape[-1]),
            )
        return value + scale * per_row(added, value, around).to(value.device, value.dtype)

    return same_everywhere(add) if added.dim() == 1 else add


def _vectors(site: str, given: Any) -> Tensor:
    """A vector, or one per row, as a tensor.

    Raises:
        InputError: it is a number, a function or not finite.
    """
    tensor = _tensor_or_function(site, given)
    if not isinstance(tensor, Tensor) or tensor.dim() == 0:
        raise InputError(
            f"what is to be added at {site} is no vector",
            expected="a tensor or an array (d,) or (row, d)",
            got=type(given).__name__,
        )
    return tensor


def _projection(site: str, given: Any) -> Edit:
    basis = _vectors(site, given)
    rows = basis.detach().reshape(-1, basis.shape[-1])
    _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    # Linearly dependent directions have singular values of the order of their precision.
    precision = torch.finfo(rows.dtype).eps if rows.is_floating_point() else 1e-12
    largest = sizes.max() if len(sizes) else 0.0
    span = directions[sizes > largest * max(rows.shape) * precision]

    def remove(value: Tensor) -> Tensor:
        axes = span.to(value.device, value.dtype)
        return value - (value @ axes.T) @ axes

    return same_everywhere(remove)


def _resolve(model: nn.Module, names: Iterable[str], known_sites: Sites | None) -> list[Place]:
    found = known_sites if known_sites is not None else find_sites(model)
    return [found.resolve(name) for name in dict.fromkeys(names)]


@contextmanager
def _hooked(
    places: Sequence[Place], callback: Callable[[Place, Tensor], Tensor | None], *, front: bool
) -> Iterator[None]:
    """Call ``callback`` with each place's value; a returned tensor replaces the value."""
    with ExitStack() as stack:
        for place in places:
            if place.side == "pattern":
                stack.enter_context(calling_patterns(place.module, _at(place, callback)))
                continue
            changed = callback
            if place.added_to is not None:
                stream: list[Tensor] = []
                stack.enter_context(_noting_input(place.added_to, stream))
                changed = _summed(changed, stream)
            if place.shape_of is not None:
                shaped: list[Tensor] = []
                stack.enter_context(_noting_input(place.shape_of, shaped))
                changed = _unflattened(changed, shaped)
            stack.enter_context(_register(place, changed, front=front))
        yield


def _at(
    place: Place, callback: Callable[[Place, Tensor], Tensor | None]
) -> Callable[[Tensor], Tensor | None]:
    return lambda weights: callback(place, weights)


def _noting_input(module: nn.Module, value: list[Tensor]) -> RemovableHandle:
    """Keep the module's input in ``value``."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value[:] = [args[0] if args else kwargs["hidden_states"]]

    return module.register_forward_pre_hook(before, with_kwargs=True)


def _unflattened(
    callback: Callable[[Place, Tensor], Tensor | None], like: list[Tensor]
) -> Callable[[Place, Tensor], Tensor | None]:
    """``callback`` on the tensor in another shape."""

    def call(place: Place, tensor: Tensor) -> Tensor | None:
        new = callback(place, tensor.reshape(*like[0].shape[:-1], -1))
        return None if new is None else new.reshape(tensor.shape)

    return call


def _summed(
    callback: Callable[[Place, Tensor], Tensor | None], stream: list[Tensor]
) -> Callable[[Place, Tensor], Tensor | None]:
    """``callback`` on the sum of the tensor and of what it is added to."""

    def call(place: Place, tensor: Tensor) -> Tensor | None:
        added = tensor if place.factor == 1 else tensor * place.factor
        new = callback(replace(place, factor=1.0, added_to=None), stream[0] + added)
        return None if new is None else (new - stream[0]) / place.factor

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
