"""Schemas of the pipeline steps of a tokenizer.

The tokenizers library is compiled code that panics on invalid fields. Some steps can lengthen a
text or cost matching time without a bound, which the schemas limit.
"""

import math
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    model_validator,
)

from capture.checkpoints.schemas.patterns import PatternError, analyze_pattern
from capture.checkpoints.tokenizers.charsmap import charsmap_growth

MAX_ID = 1 << 24
MAX_PIECES = 64
MAX_WAYS = (4096, 64)
"""Maximum number of ways to match a pattern: coefficients by degree in the text length."""

Short = Annotated[str, Field(strict=True, max_length=256)]
Token = Annotated[str, Field(strict=True, max_length=4096)]
Character = Annotated[str, Field(strict=True, min_length=1, max_length=1)]
Id = Annotated[int, Field(strict=True, ge=0, lt=MAX_ID)]
Small = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]


class Strict(BaseModel):
    """A part of tokenizer.json; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Step(Strict):
    """One pipeline step."""

    type: str

    @property
    def growth(self) -> float:
        """Maximum factor by which the step lengthens a text."""
        return 1.0


def _check_cost(pattern: str) -> str:
    try:
        ways = analyze_pattern(pattern).ways_if_last
    except PatternError as error:
        raise ValueError(f"an invalid pattern: {error}") from error
    for degree, count in enumerate(ways):
        if count > (MAX_WAYS[degree] if degree < len(MAX_WAYS) else 0):
            raise ValueError("a pattern that can take too long to match")
    return pattern


class Exact(Strict):
    """A literal pattern."""

    String: Annotated[str, Field(strict=True, min_length=1, max_length=4096)]

    @property
    def min_length(self) -> float:
        """Number of characters matched."""
        return len(self.String)


class Expression(Strict):
    """A regular expression of bounded cost."""

    Regex: Annotated[StrictStr, Field(min_length=1), AfterValidator(_check_cost)]

    @property
    def min_length(self) -> float:
        """Minimum number of characters matched, at most 1 because of case folding."""
        return min(1, analyze_pattern(self.Regex).min_length)


Pattern = Exact | Expression


class Replace(Step):
    """Replaces matches of a pattern by a text."""

    pattern: Pattern
    content: Token

    @property
    def growth(self) -> float:
        """Length of the replacement over that of the shortest match."""
        shortest = self.pattern.min_length
        return max(1.0, len(self.content) / shortest) if shortest else math.inf


class Precompiled(Step):
    """SentencePiece's precompiled character map."""

    precompiled_charsmap: StrictStr

    @model_validator(mode="after")
    def _followed(self) -> "Precompiled":
        charsmap_growth(self.precompiled_charsmap)
        return self

    @property
    def growth(self) -> float:
        """Length of the longest replacement."""
        return charsmap_growth(self.precompiled_charsmap)


class ByteLevel(Step):
    """Maps each byte to a character."""

    add_prefix_space: StrictBool = True
    trim_offsets: StrictBool = True
    use_regex: StrictBool = True

    @property
    def growth(self) -> float:
        """A character has up to four bytes."""
        return 4.0


class BertNormalizer(Step):
    """BERT's text normalization."""

    clean_text: StrictBool = True
    handle_chinese_chars: StrictBool = True
    strip_accents: StrictBool | None = None
    lowercase: StrictBool = True


class StripNormalizer(Step):
    """Removes whitespace at the ends."""

    strip_left: StrictBool = True
    strip_right: StrictBool = True


class Prepend(Step):
    """Prepends a text."""

    prepend: Short


class Metaspace(Step):
    """Replaces spaces by a visible character."""

    replacement: Character
    add_prefix_space: StrictBool = True
    prepend_scheme: Literal["always", "never", "first"] = "always"
    split: StrictBool = True
    str_rep: Character | None = None


class Split(Step):
    """Splits where a pattern matches."""

    pattern: Pattern
    behavior: Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    invert: StrictBool = False


class Punctuation(Step):
    """Splits at punctuation."""

    behavior: Literal[
        "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"
    ] = "Isolated"


class Digits(Step):
    """Splits at digits."""

    individual_digits: StrictBool = False


class FixedLength(Step):
    """Splits into pieces of fixed length."""

    length: Annotated[int, Field(strict=True, ge=1, le=1_000_000)]


class CharDelimiterSplit(Step):
    """Splits at a character."""

    delimiter: Character


class StripDecoder(Step):
    """Removes a character from the start of tokens."""

    content: Character
    start: Small
    stop: Literal[0]  # other values panic on shorter tokens


class WordPieceDecoder(Step):
    """Joins word pieces by their prefix."""

    prefix: Short = "##"
    cleanup: StrictBool = True


class BPEDecoder(Step):
    """Joins word pieces by their suffix."""

    suffix: Short = "</w>"


class CTC(Step):
    """Collapses the output of a CTC speech model."""

    pad_token: Short
    word_delimiter_token: Short
    cleanup: StrictBool


class PairProcessing(Step):
    """Adds BERT's or RoBERTa's special tokens."""

    sep: tuple[Token, Id]
    cls: tuple[Token, Id]
    trim_offsets: StrictBool = True
    add_prefix_space: StrictBool = True


class _Special(Strict):
    id: Token
    type_id: Small


class _Sequence(Strict):
    id: Literal["A", "B"]
    type_id: Small


class _SpecialPiece(Strict):
    SpecialToken: _Special


class _SequencePiece(Strict):
    Sequence: _Sequence


class _TemplateToken(Strict):
    id: Token
    ids: Annotated[list[Id], Field(min_length=1, max_length=MAX_PIECES)]
    tokens: Annotated[list[Token], Field(max_length=MAX_PIECES)]


_Pieces = Annotated[list[_SpecialPiece | _SequencePiece], Field(max_length=MAX_PIECES)]


class TemplateProcessing(Step):
    """Adds special tokens by a template."""

    single: _Pieces
    pair: _Pieces
    special_tokens: Annotated[dict[Token, _TemplateToken], Field(max_length=MAX_PIECES)]

    @model_validator(mode="after")
    def _named(self) -> "TemplateProcessing":
        for piece in (*self.single, *self.pair):
            if isinstance(piece, _SpecialPiece):
                token = piece.SpecialToken.id
                if token not in self.special_tokens:
                    raise ValueError(f"a template without its token {token!r}")
        for token in self.special_tokens.values():
            if len(token.ids) != len(token.tokens):
                raise ValueError("a template whose ids and tokens differ in number")
        return self


NORMALIZERS: dict[str, type[Step]] = {
    "BertNormalizer": BertNormalizer,
    "ByteLevel": ByteLevel,
    "Precompiled": Precompiled,
    "Prepend": Prepend,
    "Replace": Replace,
    "Strip": StripNormalizer,
} | dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents"), Step)
SPLITTERS: dict[str, type[Step]] = {
    "ByteLevel": ByteLevel,
    "CharDelimiterSplit": CharDelimiterSplit,
    "Digits": Digits,
    "FixedLength": FixedLength,
    "Metaspace": Metaspace,
    "Punctuation": Punctuation,
    "Split": Split,
} | dict.fromkeys(("BertPreTokenizer", "UnicodeScripts", "Whitespace", "WhitespaceSplit"), Step)
PROCESSORS: dict[str, type[Step]] = {
    "BertProcessing": PairProcessing,
    "ByteLevel": ByteLevel,
    "RobertaProcessing": PairProcessing,
    "TemplateProcessing": TemplateProcessing,
}
DECODERS: dict[str, type[Step]] = {
    "BPEDecoder": BPEDecoder,
    "ByteFallback": Step,
    "ByteLevel": ByteLevel,
    "CTC": CTC,
    "Fuse": Step,
    "Metaspace": Metaspace,
    "Replace": Replace,
    "Strip": StripDecoder,
    "WordPiece": WordPieceDecoder,
}
