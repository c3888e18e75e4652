"""What a tokenizer.json may hold, as a whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, ValidationError, model_validator

from capture.checkpoints.schemas.schema_errors import first_error
from capture.checkpoints.tokenizers.steps import (
    DECODERS,
    NORMALIZERS,
    PROCESSORS,
    SPLITTERS,
    Id,
    Short,
    Small,
    Step,
    Strict,
    Token,
)
from evidence.errors import InputError

MAX_BYTES = 128 << 20
"""Bytes; those of the largest vocabularies in use have a quarter."""
MAX_DEPTH = 24
MAX_TOKENS = 2_000_000
MAX_STEPS = 64
MAX_GROWTH = 256
"""How many times longer all replacements together may make a text."""

# Each part, the key under which it holds several steps in a row, and the known steps.
_PARTS: dict[str, tuple[str, dict[str, type[Step]]]] = {
    "normalizer": ("normalizers", NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", SPLITTERS),
    "post_processor": ("processors", PROCESSORS),
    "decoder": ("decoders", DECODERS),
}


class _Added(Strict):
    id: Id
    content: Token
    single_word: StrictBool
    lstrip: StrictBool
    rstrip: StrictBool
    normalized: StrictBool
    special: StrictBool


class _Truncation(Strict):
    direction: Literal["Left", "Right"] = "Right"
    max_length: Small
    strategy: Literal["LongestFirst", "OnlyFirst", "OnlySecond"]
    stride: Small

    @model_validator(mode="after")
    def _shorter(self) -> "_Truncation":
        if self.stride and self.stride >= self.max_length:
            raise ValueError("a stride that is not shorter than the length")
        return self


class _Fixed(Strict):
    Fixed: Small


class _Padding(Strict):
    strategy: Literal["BatchLongest"] | _Fixed
    direction: Literal["Left", "Right"]
    pad_to_multiple_of: Annotated[int, Field(strict=True, ge=1, le=65_536)] | None
    pad_id: Id
    pad_type_id: Small
    pad_token: Token


class _Outer(Strict):
    """All but the steps and the vocabulary."""

    version: Short = "1.0"
    truncation: _Truncation | None = None
    padding: _Padding | None = None
    added_tokens: tuple[_Added, ...] = Field(default=(), max_length=MAX_TOKENS)


Vocabulary = Annotated[dict[Token, Id], Field(min_length=1, max_length=MAX_TOKENS)]


class _Model(Strict):
    type: str
    vocab: Vocabulary

    def _need(self, token: str | None) -> None:
        if token is not None and token not in self.vocab:
            raise ValueError(
                f"an unknown token {token!r} that is not in the vocabulary"
            )


class _Bpe(_Model):
    merges: list[Token] | list[tuple[Token, Token]]
    # A dropout draws other tokens for the same text each time.
    dropout: Literal[0] | None = None
    unk_token: Token | None = None
    continuing_subword_prefix: Short | None = None
    end_of_word_suffix: Short | None = None
    fuse_unk: StrictBool = False
    byte_fallback: StrictBool = False
    ignore_merges: StrictBool = False

    @model_validator(mode="after")
    def _joined(self) -> "_Bpe":
        prefix = self.continuing_subword_prefix or ""
        for merge in self.merges:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if len(pair) != 2 or pair[0] not in self.vocab or pair[1] not in self.vocab:
                raise ValueError("a merge of tokens that are not in the vocabulary")
            # The library cuts the prefix off the second without a look.
            if not pair[1].startswith(prefix):
                raise ValueError("a merge whose second token lacks the prefix")
            if pair[0] + pair[1][len(prefix) :] not in self.vocab:
                raise ValueError("a merge to a token that is not in the vocabulary")
        return self


class _WordPiece(_Model):
    unk_token: Token = "[UNK]"
    continuing_subword_prefix: Short = "##"
    max_input_chars_per_word: Annotated[int, Field(strict=True, ge=1, le=1000)] = 100

    @model_validator(mode="after")
    def _known(self) -> "_WordPiece":
        self._need(self.unk_token)
        return self


class _WordLevel(_Model):
    unk_token: Token = "<unk>"

    @model_validator(mode="after")
    def _known(self) -> "_WordLevel":
        self._need(self.unk_token)
        return self


Score = Annotated[float, Field(ge=-1e6, le=1e6)]


class _Unigram(Strict):
    type: str
    unk_id: Id | None = None
    vocab: Annotated[
        list[tuple[Token, Score]], Field(min_length=1, max_length=MAX_TOKENS)
    ]
    byte_fallback: StrictBool = False

    @model_validator(mode="after")
    def _known(self) -> "_Unigram":
        if self.unk_id is not None and self.unk_id >= len(self.vocab):
            raise ValueError("an unknown token that is not in the vocabulary")
        if any(not token for token, _ in self.vocab):
            raise ValueError("a token without characters")
        return self


_MODELS: dict[str, type[Strict]] = {
    "BPE": _Bpe,
    "WordPiece": _WordPiece,
    "WordLevel": _WordLevel,
    "Unigram": _Unigram,
}


def check_tokenizer(value: Any, place: Path) -> None:
    """Whether the tokenizer library may be given this content of a tokenizer.json.

    Raises:
        InputError: a step, a field or a vocabulary that is not known to be harmless.
    """
    if not isinstance(value, dict):
        raise _wrong(place, "no JSON object", "a JSON object", type(value).__name__)
    outer = {
        name: said for name, said in value.items() if name not in (*_PARTS, "model")
    }
    _validate(_Outer, outer, place, "")
    for part, (several, known) in _PARTS.items():
        growth, count = 1.0, 0
        for step in _in_a_row(value.get(part), several, place, part):
            kind = known.get(str(step.get("type")))
            if kind is None:
                raise _wrong(place, part, "a step that is known", step.get("type"))
            growth *= _validate(kind, step, place, part).growth
            count += 1
            if count > MAX_STEPS or growth > MAX_GROWTH:
                raise _wrong(
                    place,
                    part,
                    f"at most {MAX_STEPS} steps that make a text at most "
                    f"{MAX_GROWTH} times longer",
                    f"{count} steps, {growth:g} times longer",
                )
    model = value.get("model")
    if not isinstance(model, dict):
        raise _wrong(place, "model", "a vocabulary", model)
    kind = str(model.get("type") or _guess(model))
    if kind not in _MODELS:
        raise _wrong(place, "model", f"one of {', '.join(_MODELS)}", kind)
    _validate(_MODELS[kind], {**model, "type": kind}, place, "model")


def _guess(model: dict[str, Any]) -> str:
    """The kind of a model in files that were written before it was named."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _in_a_row(
    value: Any, several: str, place: Path, part: str
) -> Iterator[dict[str, Any]]:
    """The single steps of a part; rows in rows are taken apart."""
    waiting = [value]
    seen = 0
    while waiting:
        step = waiting.pop(0)
        seen += 1
        if step is None:
            continue
        if not isinstance(step, dict) or seen > 4 * MAX_STEPS:
            raise _wrong(place, part, f"at most {MAX_STEPS} steps", step)
        if step.get("type") != "Sequence":
            yield step
            continue
        inner = step.get(several)
        if not isinstance(inner, list) or set(step) != {"type", several}:
            raise _wrong(place, part, f"{several} of a Sequence", step)
        waiting = [*inner[: MAX_STEPS + 1], *waiting]


def _validate(kind: type[Strict], value: dict[str, Any], place: Path, part: str) -> Any:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        field, trouble, got = first_error(error)
        name = ".".join(filter(None, (part, field)))
        raise _wrong(place, f"{name}: {trouble}", None, got) from error


def _wrong(place: Path, trouble: str, expected: str | None, got: Any) -> InputError:
    return InputError(
        f"{place} is not a tokenizer that can be used ({trouble})",
        expected=expected,
        got=repr(got)[:120],
        fix="Save the tokenizer again with save_pretrained, or pass another",
    )
