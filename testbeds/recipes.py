"""Settings of the unlearning methods in each world, read from ``recipes.toml``."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Any, TypeVar

from erasure.unlearning.config import ImageUnlearnConfig, UnlearnConfig
from evidence.errors import InputError, quoted
from evidence.fields import check_fields

IMAGE_WORLD = "digits"
Config = TypeVar("Config", UnlearnConfig, ImageUnlearnConfig)


@dataclass(frozen=True)
class Recipe:
    """Settings of a planted model.

    Attributes:
        config: Method and its settings.
        paraphrases: Whether to train on the items' paraphrases too.
        templates: More prompts to train on, with ``{}`` for the entity.
        hold_out: Share of the retain entities that training never sees, to measure side effects on
            them. Facts that have nothing in common, as in bios, can be kept only by training on
            them.
    """

    config: UnlearnConfig
    paraphrases: bool = False
    templates: tuple[str, ...] = ()
    hold_out: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


def parse_recipes(
    text: str,
) -> tuple[dict[str, dict[str, Recipe]], dict[str, list[ImageUnlearnConfig]]]:
    """Recipes of language models by world and kind, and of image classifiers by kind.

    Args:
        text: TOML as in ``recipes.toml``.

    Raises:
        InputError: the text is not TOML, or a recipe has an unknown setting or a value that its
            method refuses; the message names the recipe.
    """
    try:
        worlds = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("the recipes are not valid TOML", got=str(error)) from error
    images = _table(worlds.pop(IMAGE_WORLD, {}), IMAGE_WORLD)
    of_text = {
        world: {
            kind: _recipe(settings, f"{world}.{kind}", kind)
            for kind, settings in _table(kinds, world).items()
        }
        for world, kinds in worlds.items()
    }
    return of_text, {
        kind: [
            _config(ImageUnlearnConfig, each, f"{IMAGE_WORLD}.{kind}", kind)
            for each in _list(settings, f"{IMAGE_WORLD}.{kind}")
        ]
        for kind, settings in images.items()
    }


def _recipe(settings: Any, place: str, kind: str) -> Recipe:
    names = {field.name for field in fields(Recipe)} - {"config"}
    settings = _table(settings, place)
    own = {name: value for name, value in settings.items() if name in names}
    if isinstance(own.get("templates"), list):
        own["templates"] = tuple(own["templates"])
    rest = {name: value for name, value in settings.items() if name not in names}
    config = _config(UnlearnConfig, rest, place, kind)
    try:
        return Recipe(config, **own)
    except InputError as error:
        raise error.prefixed(f"recipe {place}: ") from error


def _config(of: type[Config], settings: Any, place: str, kind: str) -> Config:
    settings = {"method": kind, **_table(settings, place)}
    names = [field.name for field in fields(of)]
    unknown = [name for name in settings if name not in names]
    if unknown:
        _refuse(place, ", ".join(names), unknown[0], "has an unknown setting")
    try:
        return of(**settings)
    except InputError as error:
        raise error.prefixed(f"recipe {place}: ") from error


def _table(value: Any, place: str) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else _refuse(place, "a table of settings", value)


def _list(value: Any, place: str) -> list[Any]:
    if isinstance(value, list) and value:
        return value
    return _refuse(place, "a list of settings, the mildest first", value)


def _refuse(place: str, expected: str, got: Any, wrong: str = "cannot be used") -> Any:
    raise InputError(f"recipe {place} {wrong}", expected=expected, got=quoted(got))


RECIPES, DIGITS_RECIPES = parse_recipes(
    files("testbeds").joinpath("recipes.toml").read_text(encoding="utf-8")
)
