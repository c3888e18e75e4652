"""What public functions take as a model and as rows, converted at their door.

``plain_inputs``, ``reads_weights`` and ``changes_weights`` decorate a public function: arguments
for a parameter annotated ``nn.Module`` may be live models of other libraries, and those for one
annotated ``Sequences`` may be texts, token ids or the output of a tokenizer.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import UnionType
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from capture.checkpoints.hub import find_downloaded
from capture.checkpoints.live import attached_tokenizer, editable_model, plain_model, readable_model
from capture.checkpoints.tokenizers.files import holds_tokenizer, open_tokenizer
from capture.data.items import Item, ItemSet
from capture.data.sequences import Sequences
from capture.data.tokenization import encode, encode_items
from evidence.errors import InputError
from evidence.storage.files import read_json
from evidence.storage.regular_files import is_file, is_folder

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
EXPECTED = "Sequences, texts, token ids or the output of a tokenizer"


def plain_inputs(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let a public function take live models and any kind of rows.

    Rows given as text are tokenized by the tokenizer of the function's first model. None stays
    None.
    """
    return _converting(function, plain_model)


def reads_weights(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``plain_inputs`` for a function that reads weights: they must be in memory."""
    return _converting(function, readable_model)


def changes_weights(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``plain_inputs`` for a function that changes weights in place: they must be all that acts."""
    return _converting(function, editable_model)


def _converting(
    function: Callable[Arguments, Result], convert: Callable[[Any], nn.Module]
) -> Callable[Arguments, Result]:
    signature = inspect.signature(function)
    kinds = {name: _options(each.annotation) for name, each in signature.parameters.items()}
    models = [name for name, kind in kinds.items() if nn.Module in kind]
    rows = [name for name, kind in kinds.items() if Sequences in kind]

    @wraps(function)
    def call(*args: Arguments.args, **named: Arguments.kwargs) -> Result:
        # A wrong call raises the usual TypeError of Python.
        bound = signature.bind(*args, **named)
        given = dict(bound.arguments)
        live = next((given[name] for name in models if name in given), None)
        for name in (each for each in (*models, *rows) if each in given):
            value, kind = given[name], kinds[name]
            if value is None and type(None) in kind:
                continue
            if isinstance(value, tuple) and any(get_origin(each) is tuple for each in kind):
                continue
            # A module that is built here must be able to have gradients.
            with torch.inference_mode(False):
                plain = convert(value) if name in models else as_rows(value, live)
            bound.arguments[name] = plain
        return function(*bound.args, **bound.kwargs)

    return call


def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation alone."""
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def as_rows(value: Any, model: Any = None) -> Sequences:
    """Rows of token ids from whatever holds them.

    Args:
        value: One of

            * ``Sequences``;
            * a text or a list of texts, or items, for a model that has a tokenizer: nnsight's or
              TransformerLens's own, or the one saved in the folder that a Hugging Face model was
              loaded from. Special tokens are those of ``encode``;
            * token ids: a tensor or an array (row, position) or (position,), a list of ids, or a
              list of rows of different lengths;
            * the output of a tokenizer: a mapping with ``input_ids`` and, if rows were padded,
              their ``attention_mask``.
        model: The model that the rows are for, which may know its tokenizer.

    Raises:
        InputError: the value is of another kind; texts, and no tokenizer is known; padding within
            a row.
    """
    if isinstance(value, Sequences):
        return value
    if isinstance(value, str | Item):
        value = [value]
    if isinstance(value, Mapping) or hasattr(value, "input_ids"):
        return _from_tokenizer(value)
    if isinstance(value, ItemSet):
        return encode_items(_tokenizer_of(model), value)
    if isinstance(value, Tensor | np.ndarray):
        return _unmasked(value, model)
    if not isinstance(value, Sequence) or len(value) == 0:
        raise _unknown(value)
    if all(isinstance(each, str) for each in value):
        return encode(_tokenizer_of(model), value)
    if all(isinstance(each, Item) for each in value):
        return encode_items(_tokenizer_of(model), value)
    return _from_ids(value, None)


def _from_tokenizer(value: Any) -> Sequences:
    fields = value if isinstance(value, Mapping) else vars(value)
    if fields.get("input_ids") is None:
        names = ", ".join(map(str, fields)) or "nothing"
        raise InputError(
            "the rows hold no token ids", expected="a field input_ids", got=f"the fields {names}"
        )
    return _from_ids(fields["input_ids"], fields.get("attention_mask"))


def _from_ids(ids: Any, mask: Any) -> Sequences:
    rows = _lists(ids)
    if mask is not None:
        kept = _lists(mask)
        if [len(row) for row in kept] != [len(row) for row in rows]:
            raise InputError(
                "input_ids and attention_mask differ in shape",
                expected="one entry of the mask for each token id",
                got=f"{len(rows)} rows of ids and {len(kept)} of the mask",
            )
        pairs = zip(rows, kept, strict=True)
        rows = [_unpadded(number, *pair) for number, pair in enumerate(pairs)]
    return Sequences(tuple(map(tuple, rows)), tuple(map(len, rows)))


def _unmasked(ids: Any, model: Any) -> Sequences:
    """Rows of a tensor, which may not be padded, since nothing says where."""
    rows = _from_ids(ids, None)
    config = None if model is None else getattr(plain_model(model), "config", None)
    pad = getattr(config, "pad_token_id", None)
    padded = [n for n, row in enumerate(rows.ids) if row and pad in (row[0], row[-1])]
    if pad is not None and len(rows) > 1 and padded:
        raise InputError(
            "a tensor of token ids does not say which of them are padding",
            expected="rows without padding",
            got=f"row {padded[0]} begins or ends with the padding token {pad}",
            fix="Pass the whole output of the tokenizer, which holds the attention mask, or a "
            "list of rows",
        )
    return rows


def _lists(value: Any) -> list[list[int]]:
    """Rows of whole numbers, from a tensor, an array or nested sequences."""
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
        if array.ndim not in (1, 2) or not whole:
            raise _unknown(value)
        return np.atleast_2d(array).astype(int).tolist()
    rows = list(value)
    if rows and all(np.ndim(each) == 0 for each in rows):
        rows = [rows]
    lists = [each.tolist() if isinstance(each, Tensor | np.ndarray) else each for each in rows]
    for row in lists:
        if not isinstance(row, Sequence) or not all(_is_id(token) for token in row):
            raise _unknown(value)
    return [[int(token) for token in row] for row in lists]


def _is_id(token: Any) -> bool:
    return isinstance(token, int | np.integer) or (
        isinstance(token, Tensor) and token.dim() == 0 and not token.is_floating_point()
    )


def _unpadded(number: int, ids: list[int], mask: list[int]) -> list[int]:
    """The ids where the mask is 1, which must be one stretch."""
    kept = np.flatnonzero(mask)
    if len(kept) and kept[-1] - kept[0] + 1 != len(kept):
        raise InputError(
            f"row {number} has padding between its tokens",
            expected="padding before or after the tokens of a row",
            got=f"attention_mask {mask}",
        )
    return [ids[at] for at in kept]


def _unknown(value: Any) -> InputError:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor | np.ndarray) else ""
    kind = f" {value.dtype}" if isinstance(value, Tensor | np.ndarray) else ""
    empty = " without entries" if isinstance(value, Sequence) and not len(value) else ""
    return InputError(
        "these are no rows of tokens",
        expected=EXPECTED,
        got=f"{type(value).__name__}{kind}{shape}{empty}",
        fix="Make rows with exhume.encode(tokenizer, texts)",
    )


def _tokenizer_of(model: Any) -> Any:
    """The tokenizer that belongs to a model.

    Raises:
        InputError: none is known.
    """
    found = attached_tokenizer(model)
    if found is None:
        name = getattr(getattr(plain_model(model), "config", None), "_name_or_path", None)
        found = _saved_tokenizer(name) if isinstance(name, str) and name else None
    if found is None:
        raise InputError(
            "texts need the tokenizer of the model, and this model does not say which it is",
            expected=EXPECTED,
            got="text",
            fix="Make rows with exhume.encode(tokenizer, texts)",
        )
    return found


@cache
def _saved_tokenizer(name: str) -> Any:
    """The tokenizer in a model's folder, or in the local copy of a hub id; None if there is none.

    Nothing is downloaded.
    """
    folder = Path(name) if is_folder(Path(name)) else find_downloaded(name, None)
    if folder is None or not holds_tokenizer(folder):
        return None
    config = folder / "config.json"
    return open_tokenizer(folder, read_json(config) if is_file(config) else {})
