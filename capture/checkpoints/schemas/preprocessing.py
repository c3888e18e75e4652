"""Validation of preprocessor_config.json, the image preprocessing of a checkpoint."""

from os.path import lexists
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from capture.checkpoints.schemas.schema_errors import validated
from evidence.storage.files import read_json

NAME, MAX_BYTES = "preprocessor_config.json", 1 << 20

Side = Annotated[int, Field(strict=True, ge=1, le=16_384)]
Mean = Annotated[float, Field(ge=-1e4, le=1e4)]
Spread = Annotated[float, Field(gt=1e-6, le=1e4)]


class _Sides(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    height: Side | None = None
    width: Side | None = None
    shortest_edge: Side | None = None


Size = Side | Annotated[list[Side], Field(min_length=1, max_length=2)] | _Sides | None


class _Preprocessor(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    image_mean: Annotated[list[Mean], Field(min_length=1, max_length=16)] = [0.5]
    image_std: Annotated[list[Spread], Field(min_length=1, max_length=16)] = [0.5]
    size: Size = None
    crop_size: Size = None


def read_preprocessor(folder: Path | None) -> dict[str, Any]:
    """Mean, standard deviation and sizes of images; empty if there is no file.

    Raises:
        InputError: a value has the wrong type or is out of range.
    """
    path = None if folder is None else folder / NAME
    if path is None or not lexists(path):
        return {}
    raw = read_json(path, max_bytes=MAX_BYTES, max_depth=8)
    settings = validated(_Preprocessor, raw, f"{path} has an invalid image preprocessing")
    return settings.model_dump(exclude_unset=True)
