"""A checkpoint's preprocessor_config.json: how images are made ready for a model."""

from os.path import lexists
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capture.checkpoints.schemas.schema_errors import first_error
from evidence.errors import InputError
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
    """Mean, spread and sizes of images, as far as the file is there and says them.

    Raises:
        InputError: a value is of another kind or out of range.
    """
    place = None if folder is None else folder / NAME
    if place is None or not lexists(place):
        return {}
    said = read_json(place, max_bytes=MAX_BYTES, max_depth=8)
    try:
        return _Preprocessor.model_validate(said).model_dump(exclude_unset=True)
    except ValidationError as error:
        field, trouble, got = first_error(error)
        raise InputError(
            f"{place} does not say how images are made ready ({field}: {trouble})",
            got=repr(got)[:120],
        ) from error
