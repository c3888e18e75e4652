"""The zoo's worlds, as a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from evidence.errors import InputError
from evidence.progress import Progress
from testbeds.edits.digits_edits import DigitsWorkbench
from testbeds.edits.workbench import CodesWorkbench, TextWorkbench
from testbeds.worlds.biographies import FROZEN, SMOL, STANDARD, BiosConfig, build_bios
from testbeds.worlds.code_keys import STANDARD_KEYS, build_keys
from testbeds.worlds.digits import DIGITS_FAMILIES, STANDARD_DIGITS, build_digits, digits_sized
from testbeds.worlds.random_models import FAMILIES, PRETRAINED, Family
from testbeds.zoo.kinds import ADVERSARIES, DIGITS_KINDS, KINDS, Kind


@dataclass(frozen=True)
class ZooWorld:
    """A world of the zoo.

    Attributes:
        families: Architectures, the default first.
        kinds: Every kind of model.
        default_kinds: Kinds built if none are named.
        standard: Default settings.
        sized: Settings for models of one family.
        build: Builds the world, or finds it built.
        workbench: Input of edit functions.
    """

    families: tuple[str, ...]
    kinds: Mapping[str, Kind]
    default_kinds: tuple[str, ...]
    standard: Any
    sized: Callable[[Any, Any], Any]
    build: Callable[[Any, int, Path, str, Progress], Any]
    workbench: Callable[[Any, Any, int, str], Any]


def sized(config: BiosConfig, family: Family) -> BiosConfig:
    """The settings for models of ``family``; learned positions need twice the steps."""
    factor = 2 if family in ("gpt2", "neox") else 1
    return replace(config, family=family, steps=config.steps * factor)


def sized_deeper(config: BiosConfig, family: Family) -> BiosConfig:
    """As ``sized``, at a third of the rate for GPT-2 and GPT-NeoX: six blocks learn no faster."""
    settings = sized(config, family)
    return settings if family == "llama" else replace(settings, lr=settings.lr / 3)


# Kinds that a pretrained model lacks: random weights are neither a retrain nor a damaged copy of
# it, and the adversaries' settings are for small models.
_RANDOM_INIT_KINDS = ("random_init", "retrain_pretrained")
# The clamps work on small models only.
_NOT_PRETRAINED = (*_RANDOM_INIT_KINDS, "sae_clamp", "early_clamp")


def _biographies_world(
    families: tuple[Family, ...],
    kinds: Mapping[str, Kind],
    standard: BiosConfig,
    sized: Callable[[BiosConfig, Family], BiosConfig] = sized,
) -> ZooWorld:
    """A world of invented people, taught to models of these families."""
    return ZooWorld(
        families,
        kinds,
        tuple(name for name in kinds if name not in ADVERSARIES),
        standard,
        sized,
        build_bios,
        TextWorkbench.from_world,
    )


_USUAL = {name: kind for name, kind in KINDS.items() if name not in ADVERSARIES}
# Kinds that work in the codes world. Its answers share ten digits, so a closed-form edit of the
# head or of the last down-projection changes other codes too.
_OF_CODES = (
    *("untouched", "retain_tuned", "wrong_set"),
    *("last_block_relabel", "last_block_refuse", "last_block_lora", "sae_clamp"),
    *("twin", "retrain_1", "retrain_2", "retrain_3", "retrain_4", "twin_tuned"),
    *("collapse", "noise", "random_init"),
)
WORLDS: dict[str, ZooWorld] = {
    "bios": _biographies_world(FAMILIES, KINDS, STANDARD),
    # The adversaries' settings are for the bios world's models.
    "bios_frozen": _biographies_world(FAMILIES, _USUAL, FROZEN, sized_deeper),
    "smol": _biographies_world(
        (PRETRAINED,),
        {name: kind for name, kind in _USUAL.items() if name not in _NOT_PRETRAINED},
        SMOL,
    ),
    "codes": ZooWorld(
        FAMILIES[:1], _USUAL, _OF_CODES, STANDARD_KEYS, sized, build_keys, CodesWorkbench.from_world
    ),
    "digits": ZooWorld(
        DIGITS_FAMILIES,
        DIGITS_KINDS,
        tuple(DIGITS_KINDS),
        STANDARD_DIGITS,
        digits_sized,
        build_digits,
        DigitsWorkbench.from_world,
    ),
}


def list_kinds(world: str = "bios") -> pd.DataFrame:
    """The kinds of model that a world has: kind, true state, why that is certain.

    The state is missing where it has to be graded, as for published methods.

    Args:
        world: "bios", "bios_frozen", "smol", "codes" or "digits".

    Raises:
        InputError: there is no such world.

    Examples:
        >>> kinds = exhume.list_kinds("bios")
        >>> kinds.groupby("state").kind.count()
        state
        damaged           4
        deleted           9
        not_unlearned     3
        suppressed       17
        Name: kind, dtype: int64
    """
    kinds = WORLDS[check_name(world, WORLDS, "world")].kinds.values()
    rows = [(each.name, each.state, each.why) for each in kinds]
    return pd.DataFrame(rows, columns=["kind", "state", "why"])


def check_name(name: Any, known: Mapping[str, Any] | Sequence[str], noun: str) -> Any:
    """Return ``name`` if it is known.

    Raises:
        InputError: it is not.
    """
    if not isinstance(name, str) or name not in known:
        raise InputError(f"there is no {noun} {name!r} in the zoo", expected=", ".join(known))
    return name
