"""Validation of a checkpoint's generation settings.

Other settings, which name code, caches, compilers or further models, are dropped.
"""

from collections.abc import Mapping
from os.path import lexists
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from capture.checkpoints.schemas.schema_errors import validated
from evidence.storage.files import read_json
from evidence.typed_json import Json

NAME, MAX_BYTES = "generation_config.json", 1 << 20

Id = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(max_length=65_536)]
Absent = Annotated[int, Field(strict=True, ge=-1, le=-1)]
"""Means "no such token" in LLaMA 1 checkpoints."""
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


def read_generation(folder: Path, config: Mapping[str, Any]) -> dict[str, Json]:
    """Generation settings from generation_config.json, or else from config.json.

    Raises:
        InputError: a setting has the wrong type or is out of range.
    """
    path = folder / NAME
    has_file = lexists(path)
    raw = read_json(path, max_bytes=MAX_BYTES, max_depth=8) if has_file else config
    name = path if has_file else folder / "config.json"
    settings = validated(_Generation, raw, f"{name} has invalid generation settings")
    fields = settings.model_dump(exclude_unset=True)
    return {name: value for name, value in fields.items() if value not in (None, -1)}
