"""Schema of tokenizer.json."""

from collections.abc import Iterator, Mapping
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
from evidence.typed_json import Json

MAX_BYTES = 128 << 20
"""Four times the size of the largest vocabularies in use."""
MAX_DEPTH = 24
MAX_TOKENS = 2_000_000
MAX_STEPS = 64
MAX_GROWTH = 256
"""Maximum factor by which all steps together may lengthen a text."""

# Part of the pipeline to the key of its list of steps, and the known steps.
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
    """Fields other than the steps and the vocabulary."""

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
            raise ValueError(f"an unknown token {token!r} that is not in the vocabulary")


class _Bpe(_Model):
    merges: list[Token] | list[tuple[Token, Token]]
    # BPE dropout would make tokenization random.
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
            # The library removes the prefix of the second token without a check.
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
    vocab: Annotated[list[tuple[Token, Score]], Field(min_length=1, max_length=MAX_TOKENS)]
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


def check_tokenizer(value: Any, path: Path) -> None:
    """Check that the content of a tokenizer.json is safe to pass to the library.

    Raises:
        InputError: a step, a field or the vocabulary is not known to be safe.
    """
    if not isinstance(value, dict):
        raise _bad_tokenizer(path, "no JSON object", "a JSON object", type(value).__name__)
    outer = {name: field for name, field in value.items() if name not in (*_PARTS, "model")}
    _validate(_Outer, outer, path, "")
    for part, (list_key, known) in _PARTS.items():
        growth, count = 1.0, 0
        for step in _flatten_steps(value.get(part), list_key, path, part):
            kind = known.get(str(step.get("type")))
            if kind is None:
                raise _bad_tokenizer(path, part, "a known step", step.get("type"))
            growth *= _validate(kind, step, path, part).growth
            count += 1
            if count > MAX_STEPS or growth > MAX_GROWTH:
                raise _bad_tokenizer(
                    path,
                    part,
                    f"at most {MAX_STEPS} steps that make a text at most {MAX_GROWTH} times longer",
                    f"{count} steps, {growth:g} times longer",
                )
    model = value.get("model")
    if not isinstance(model, dict):
        raise _bad_tokenizer(path, "model", "a vocabulary", model)
    kind = str(model.get("type") or _infer_model_type(model))
    if kind not in _MODELS:
        raise _bad_tokenizer(path, "model", f"one of {', '.join(_MODELS)}", kind)
    _validate(_MODELS[kind], {**model, "type": kind}, path, "model")


def _infer_model_type(model: Mapping[str, Json]) -> str:
    """The type of a model in old files that do not state it."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _flatten_steps(
    value: Any, list_key: str, path: Path, part: str
) -> Iterator[Mapping[str, Json]]:
    """The steps of a part, with nested sequences flattened."""
    pending = [value]
    n_steps = 0
    while pending:
        step = pending.pop(0)
        n_steps += 1
        if step is None:
            continue
        if not isinstance(step, dict) or n_steps > 4 * MAX_STEPS:
            raise _bad_tokenizer(path, part, f"at most {MAX_STEPS} steps", step)
        if step.get("type") != "Sequence":
            yield step
            continue
        inner = step.get(list_key)
        if not isinstance(inner, list) or set(step) != {"type", list_key}:
            raise _bad_tokenizer(path, part, f"{list_key} of a Sequence", step)
        pending = [*inner[: MAX_STEPS + 1], *pending]


def _validate(schema: type[Strict], value: Mapping[str, Json], path: Path, part: str) -> Any:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        field, problem, got = first_error(error)
        name = ".".join(filter(None, (part, field)))
        raise _bad_tokenizer(path, f"{name}: {problem}", None, got) from error


def _bad_tokenizer(path: Path, problem: str, expected: str | None, got: Any) -> InputError:
    return InputError(
        f"{path} is not a valid tokenizer ({problem})",
        expected=expected,
        got=repr(got)[:120],
        fix="Save the tokenizer again with save_pretrained, or pass another",
    )
