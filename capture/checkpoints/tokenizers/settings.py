"""Validation of a tokenizer's settings files, and the settings passed to the library.

Other settings are dropped; some name files, code or replacement objects.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from capture.checkpoints.schemas.schema_errors import validated
from capture.checkpoints.tokenizers.steps import Id, Short, Token
from evidence.typed_json import Json

MAX_TEMPLATE_CHARACTERS = 1 << 20
_TOKEN_FIELD = re.compile(r"[a-z][a-z0-9_]{0,60}_token")
"""A named special token, such as ``image_token``."""


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
    """Special tokens, in tokenizer_config.json or special_tokens_map.json."""

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


def filter_settings(raw: Mapping[str, Json], path: Path) -> dict[str, Json]:
    """The settings of a tokenizer_config.json to pass on.

    Raises:
        InputError: a setting has an invalid type.
    """
    settings = _filtered(_Settings, raw, path)
    decoder = settings.pop("added_tokens_decoder", None)
    settings = _mark_added_tokens(settings)
    return settings if decoder is None else {**settings, "added_tokens_decoder": decoder}


def filter_special_tokens(raw: Mapping[str, Json], path: Path) -> dict[str, Json]:
    """The tokens of a special_tokens_map.json to pass on.

    Raises:
        InputError: a token is invalid.
    """
    return _drop_special_flags(_filtered(_Special, raw, path))


def filter_added_tokens(raw: Mapping[str, Json], path: Path) -> dict[str, int]:
    """The content of an added_tokens.json: token to id.

    Raises:
        InputError: a token or an id is invalid.
    """
    return _validated(_Added, {"tokens": raw}, path).tokens


def _filtered(schema: type[_Special], raw: Mapping[str, Json], path: Path) -> dict[str, Json]:
    named = {
        name: value
        for name, value in raw.items()
        if _TOKEN_FIELD.fullmatch(name) and not isinstance(value, bool)
    }
    grouped = {name: raw[name] for name in raw if name not in named} | {"named": named}
    settings = _validated(schema, grouped, path).model_dump(exclude_unset=True)
    return settings | settings.pop("named")


def _mark_added_tokens(value: Any) -> Any:
    """Mark token objects as ``AddedToken``, as the library does."""
    if isinstance(value, list):
        return [_mark_added_tokens(child) for child in value]
    if not isinstance(value, dict):
        return value
    if "content" in value:
        return {"__type": "AddedToken", **value}
    return {name: _mark_added_tokens(child) for name, child in value.items()}


def _drop_special_flags(value: Any) -> Any:
    """Remove the ``special`` flags, which the library sets itself."""
    if isinstance(value, list):
        return [_drop_special_flags(child) for child in value]
    if not isinstance(value, dict):
        return value
    return {name: _drop_special_flags(value[name]) for name in value if name != "special"}


def _validated(schema: type[_Part], raw: Mapping[str, Json], path: Path) -> Any:
    fix = "Save the tokenizer again with save_pretrained, or pass another"
    return validated(schema, raw, f"{path} has invalid tokenizer settings", fix)
