"""What of a tokenizer's settings files the library is given; it sees nothing else.

Some settings name files, code, or objects to use in place of the tokenizer's own.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from capture.checkpoints.schemas.schema_errors import first_error
from capture.checkpoints.tokenizers.steps import Id, Short, Token
from evidence.errors import InputError

MAX_TEMPLATE_CHARACTERS = 1 << 20
_NAMED = re.compile(r"[a-z][a-z0-9_]{0,60}_token")
"""A special token under a name of its own, such as ``image_token``."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _AddedToken(_Part):
    content: Token
    lstrip: StrictBool = False
    rstrip: StrictBool = False
    single_word: StrictBool = False
    normalized: StrictBool = True
    special: StrictBool = False


Word = Token | _AddedToken
Words = Annotated[list[Word], Field(max_length=65_536)]
Template = Annotated[str, Field(strict=True, max_length=MAX_TEMPLATE_CHARACTERS)]
Index = Annotated[str, Field(pattern=r"^[0-9]{1,8}$")]
SmallCount = Annotated[int, Field(strict=True, ge=0, le=1000)]
Length = Annotated[int | float, Field(ge=1, le=1e31)]


class _NamedTemplate(_Part):
    name: Short
    template: Template


class _Special(_Part):
    """Special tokens, in either of the files that hold some."""

    named: dict[str, Word | None] = Field(default_factory=dict)
    extra_special_tokens: Words | dict[Short, Word] | None = None
    additional_special_tokens: Words | None = None


class _Settings(_Special):
    added_tokens_decoder: dict[Index, _AddedToken] | None = None
    tokenizer_class: Annotated[str, Field(pattern=r"^\w{1,80}$")] | None = None
    chat_template: Template | list[_NamedTemplate] | None = None
    model_max_length: Length | None = None
    padding_side: Literal["left", "right"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    errors: Literal["strict", "replace", "ignore"] | None = None
    model_input_names: Annotated[list[Short], Field(max_length=16)] | None = None
    wordpieces_prefix: Short | None = None
    extra_ids: SmallCount | None = None
    offset: SmallCount | None = None
    add_bos_token: StrictBool | None = None
    add_eos_token: StrictBool | None = None
    add_prefix_space: StrictBool | None = None
    clean_text: StrictBool | None = None
    clean_up_tokenization_spaces: StrictBool | None = None
    do_lower_case: StrictBool | None = None
    keep_accents: StrictBool | None = None
    legacy: StrictBool | None = None
    remove_space: StrictBool | None = None
    split_by_punct: StrictBool | None = None
    split_special_tokens: StrictBool | None = None
    strip_accents: StrictBool | None = None
    tokenize_chinese_chars: StrictBool | None = None
    trim_offsets: StrictBool | None = None


class _Added(_Part):
    tokens: Annotated[dict[Token, Id], Field(max_length=65_536)]


def filter_settings(raw: dict[str, Any], place: Path) -> dict[str, Any]:
    """What of a tokenizer_config.json may be handed on.

    Raises:
        InputError: a setting is of another kind than the library takes.
    """
    kept = _kept(_Settings, raw, place)
    decoder = kept.pop("added_tokens_decoder", None)
    kept = _marked(kept)
    return kept if decoder is None else {**kept, "added_tokens_decoder": decoder}


def filter_special_tokens(raw: dict[str, Any], place: Path) -> dict[str, Any]:
    """What of a special_tokens_map.json may be handed on.

    Raises:
        InputError: a token is none.
    """
    return _unmarked(_kept(_Special, raw, place))


def filter_added_tokens(raw: dict[str, Any], place: Path) -> dict[str, int]:
    """What of an added_tokens.json may be handed on: tokens and their numbers.

    Raises:
        InputError: a token or a number is none.
    """
    return _valid(_Added, {"tokens": raw}, place).tokens


def _kept(kind: type[_Special], said: dict[str, Any], place: Path) -> dict[str, Any]:
    named = {
        name: value
        for name, value in said.items()
        if _NAMED.fullmatch(name) and not isinstance(value, bool)
    }
    ours = {name: said[name] for name in said if name not in named} | {"named": named}
    found = _valid(kind, ours, place).model_dump(exclude_unset=True)
    return found | found.pop("named")


def _marked(value: Any) -> Any:
    """The same with each token that has settings marked as one, as the library does."""
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "content" in value:
        return {"__type": "AddedToken", **value}
    return {name: _marked(each) for name, each in value.items()}


def _unmarked(value: Any) -> Any:
    """The same without what the library adds itself to tokens of this file."""
    if isinstance(value, list):
        return [_unmarked(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {name: _unmarked(value[name]) for name in value if name != "special"}


def _valid(kind: type[_Part], said: dict[str, Any], place: Path) -> Any:
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        field, trouble, got = first_error(error)
        raise InputError(
            f"{place} is not a tokenizer's settings ({field}: {trouble})",
            got=repr(got)[:120],
            fix="Save the tokenizer again with save_pretrained, or pass another",
        ) from error
