"""Recipes are read strictly: one error that names the recipe."""

import tomllib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

import pytest

from erasure.unlearning.config import ImageUnlearnConfig, UnlearnConfig
from evidence.errors import InputError
from testbeds.recipes import DIGITS_RECIPES, RECIPES, Recipe, parse_recipes
from testbeds.worlds.capitals import TRAINING_TEMPLATE

ROOT = Path(__file__).parents[2]


def test_a_recipe_is_its_settings_and_the_defaults():
    text, images = parse_recipes(
        """
        [w.npo]
        lr = 1e-3
        templates = ["{} is"]
        [w.collapse]
        method = "grad_ascent"
        hold_out = 0.25
        [digits]
        duck = [{ lr = 1e-4 }, {}]
        """
    )
    assert text == {
        "w": {
            "npo": Recipe(UnlearnConfig("npo", lr=1e-3), templates=("{} is",)),
            "collapse": Recipe(UnlearnConfig("grad_ascent"), hold_out=0.25),
        }
    }
    assert images == {"duck": [ImageUnlearnConfig("duck", lr=1e-4), ImageUnlearnConfig("duck")]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[w", "not valid TOML"),
        ("w = 1", "recipe w cannot be used. Expected a table"),
        ("[w]\nnpo = 1", "recipe w.npo cannot be used. Expected a table"),
        ("[w.npo]\nrate = 1.0", "recipe w.npo has an unknown setting.*got 'rate'"),
        ("[w.npo]\nconfig = 1", "recipe w.npo has an unknown setting.*got 'config'"),
        ("[w.npo]\nlr = 'high'", "recipe w.npo: lr cannot be used.*got 'high'"),
        ("[w.npo]\nsteps = 0", "recipe w.npo: steps cannot be used"),
        ("[w.npo]\nparaphrases = 1", "recipe w.npo: paraphrases cannot be used"),
        ("[w.npo]\ntemplates = '{}'", "recipe w.npo: templates cannot be used"),
        ("[w.forgetting]", "recipe w.forgetting: method cannot be used.*npo"),
        ("digits = 1", "recipe digits cannot be used"),
        ("[digits]\nduck = {}", "recipe digits.duck cannot be used. Expected a list"),
        ("[digits]\nduck = []", "recipe digits.duck cannot be used. Expected a list"),
        ("[digits]\nduck = [1]", "recipe digits.duck cannot be used. Expected a table"),
        ("[digits]\nduck = [{ beta = 1.0 }]", "recipe digits.duck has an unknown setting"),
    ],
)
def test_what_is_no_recipe_is_refused(text, words):
    with pytest.raises(InputError, match=words):
        parse_recipes(text)


def test_numbers_have_the_type_of_their_setting():
    """A whole number where a float is expected would be written to cards in another way."""
    configs = [recipe.config for kinds in RECIPES.values() for recipe in kinds.values()]
    for config in (*configs, *(each for rows in DIGITS_RECIPES.values() for each in rows)):
        for field in fields(config):
            if isinstance(field.default, float):
                assert isinstance(getattr(config, field.name), float), (config.method, field.name)


def test_capitals_are_trained_with_the_template_that_counts_for_knowledge():
    assert {r.templates for r in RECIPES["capitals"].values()} == {(TRAINING_TEMPLATE,)}


def test_an_installed_package_has_the_files():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    assert files("testbeds").joinpath("recipes.toml").is_file()
    for path in (ROOT / "testbeds").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py":
            assert any(path.match(pattern) for pattern in patterns), path
