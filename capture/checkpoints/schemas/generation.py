"""A checkpoint's generation settings: which are taken, and in which ranges.

Others name code, caches, compilers and further models; they are left out.
"""

from collections.abc import Mapping
from os.path import lexists
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError

from capture.checkpoints.schemas.schema_errors import first_error
from evidence.errors import InputError
from evidence.storage.files import read_json

NAME, MAX_BYTES = "generation_config.json", 1 << 20

Id = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(max_length=65_536)]
Absent = Annotated[int, Field(strict=True, ge=-1, le=-1)]
"""How files of the first LLaMA say that there is no such token."""
TokenIds = Id | Ids | Absent | None
Length = Annotated[int, Field(strict=True, ge=0, le=1 << 31)]
Probability = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=-1e3, le=1e3)]
Biases = Annotated[list[tuple[Ids, Factor]], Field(max_length=65_536)]
Positive = Annotated[float, Field(ge=0, le=1e6)]


class _Generation(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    pad_token_id: TokenIds = None
    decoder_start_token_id: TokenIds = None
    forced_bos_token_id: TokenIds = None
    forced_eos_token_id: TokenIds = None
    suppress_tokens: Ids | None = None
    begin_suppress_tokens: Ids | None = None
    bad_words_ids: Annotated[list[Ids], Field(max_length=65_536)] | None = None
    sequence_bias: Biases | None = None
    do_sample: StrictBool | None = None
    temperature: Positive | None = None
    top_k: Length | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repetition_penalty: Positive | None = None
    length_penalty: Factor | None = None
    no_repeat_ngram_size: Length | None = None
    max_length: Length | None = None
    max_new_tokens: Length | None = None
    min_length: Length | None = None
    min_new_tokens: Length | None = None


def read_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model generates with, of generation_config.json or else of config.json.

    Raises:
        InputError: a setting is of another kind or out of range.
    """
    place = folder / NAME
    there = lexists(place)
    said = read_json(place, max_bytes=MAX_BYTES, max_depth=8) if there else config
    try:
        found = _Generation.model_validate(said).model_dump(exclude_unset=True)
    except ValidationError as error:
        field, trouble, got = first_error(error)
        name = place if there else folder / "config.json"
        raise InputError(
            f"{name} has generation settings that cannot be used ({field}: {trouble})",
            got=repr(got)[:120],
        ) from error
    return {name: value for name, value in found.items() if value not in (None, -1)}
