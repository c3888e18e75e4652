"""What the zoo needs to know of each of its worlds, as a table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from capture.checkpoints.open import open_checkpoint
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from evidence.progress import Progress
from testbeds.edits.codes_workbench import CodesWorkbench
from testbeds.edits.digits_edits import DigitsWorkbench
from testbeds.edits.workbench import Workbench
from testbeds.worlds.biographies import SMOL, STANDARD, BiosConfig, build_bios
from testbeds.worlds.code_key_items import STANDARD_KEYS
from testbeds.worlds.code_keys import build_keys
from testbeds.worlds.digits import (
    DIGITS_FAMILIES,
    STANDARD_DIGITS,
    DigitsConfig,
    DigitsWorld,
    build_digits,
    digits_sized,
)
from testbeds.worlds.random_models import FAMILIES, PRETRAINED, Family
from testbeds.zoo.digits_kinds import DIGITS_KINDS
from testbeds.zoo.kinds import ADVERSARIES, KINDS, Kind


@dataclass(frozen=True)
class ZooWorld:
    """A world of the zoo.

    Attributes:
        families: Shapes of models, the usual one first.
        kinds: Every kind of model.
        default_kinds: Kinds made where none are named.
        standard: Settings where none are given.
        sized: Settings for models of one family.
        build: Makes the world, or finds it made.
        workbench: What makers work with.
        digests: Names and hashes of what the card says the models were made with.
        measure: What a model says of what was to go, and of the rest.
        save: Writes what lies beside a model's weights.
    """

    families: tuple[str, ...]
    kinds: Mapping[str, Kind]
    default_kinds: tuple[str, ...]
    standard: Any
    sized: Callable[[Any, Any], Any]
    build: Callable[[Any, int, Path, str, Progress], Any]
    workbench: Callable[[Any, Any, int, str], Any]
    digests: Callable[[Any], dict[str, str]]
    measure: Callable[[nn.Module, Any], dict[str, float]]
    save: Callable[[Any, Path], None]


def sized(config: BiosConfig, family: Family) -> BiosConfig:
    """The world's settings for models of ``family``: learned positions take longer."""
    longer = 2 if family in ("gpt2", "neox") else 1
    return replace(config, family=family, steps=config.steps * longer)


def _bios_digests(ground: Workbench) -> dict[str, str]:
    return {"forget": ground.forget.digest, "retain": ground.retain.digest}


def _measure_bios(model: nn.Module, ground: Workbench) -> dict[str, float]:
    def right(items) -> float:
        return float(score_answers(model, ground.all_rows(items)).greedy.mean())

    return {"said": right(ground.forget), "kept": right(ground.retain)}


def _digits_workbench(
    world: DigitsWorld, config: DigitsConfig, seed: int, device: str
) -> DigitsWorkbench:
    pair = (open_checkpoint(world.original), open_checkpoint(world.twin))
    return DigitsWorkbench.from_world(world, config, seed, *pair, device)


def _digits_digests(ground: DigitsWorkbench) -> dict[str, str]:
    names = ("forget", "retain", "forget_test", "retain_test")
    return {name: getattr(ground, name).digest for name in names}


# What a pretrained model's kinds lack: starting from nothing is no retrain of it, nor a
# wreck, and the adversaries' settings are those of small models.
_RANDOM_INIT_KINDS = ("random_init", "retrain_pretrained")
# The clamp has been made on small models alone.
_NOT_PRETRAINED = (*_RANDOM_INIT_KINDS, "sae_clamp")


def _biographies_world(
    families: tuple[Family, ...], kinds: Mapping[str, Kind], standard: BiosConfig
) -> ZooWorld:
    """A world of invented people, taught to models of these families."""
    return ZooWorld(
        families,
        kinds,
        tuple(name for name in kinds if name not in ADVERSARIES),
        standard,
        sized,
        build_bios,
        Workbench.from_world,
        _bios_digests,
        _measure_bios,
        _save_tokenizer,
    )


def _save_tokenizer(ground: Workbench, folder: Path) -> None:
    ground.tokenizer.save_pretrained(folder)


# The adversaries' settings are those of the bios world's models.
_USUAL = {name: kind for name, kind in KINDS.items() if name not in ADVERSARIES}
# Seen to come out in the codes world. Its answers share ten digits, so an edit of the
# head or of the last way out in closed form takes the other codes along with some.
_OF_CODES = (
    *("untouched", "retain_tuned", "wrong_set"),
    *("last_block_relabel", "last_block_refuse", "last_block_lora", "sae_clamp"),
    *("twin", "retrain_1", "retrain_2", "retrain_3", "retrain_4", "twin_tuned"),
    *("collapse", "noise", "random_init"),
)
WORLDS: dict[str, ZooWorld] = {
    "bios": _biographies_world(FAMILIES, KINDS, STANDARD),
    "smol": _biographies_world(
        (PRETRAINED,),
        {name: kind for name, kind in _USUAL.items() if name not in _NOT_PRETRAINED},
        SMOL,
    ),
    "codes": ZooWorld(
        FAMILIES[:1],
        _USUAL,
        _OF_CODES,
        STANDARD_KEYS,
        sized,
        build_keys,
        CodesWorkbench.from_world,
        _bios_digests,
        _measure_bios,
        _save_tokenizer,
    ),
    "digits": ZooWorld(
        DIGITS_FAMILIES,
        DIGITS_KINDS,
        tuple(DIGITS_KINDS),
        STANDARD_DIGITS,
        digits_sized,
        build_digits,
        _digits_workbench,
        _digits_digests,
        lambda model, ground: ground.measured_at_output(model),
        lambda ground, folder: None,
    ),
}


def check_name(name: Any, among: Mapping[str, Any] | Sequence[str], what: str) -> Any:
    """``name``, if it is among the known ones.

    Raises:
        InputError: it is not.
    """
    if not isinstance(name, str) or name not in among:
        raise InputError(
            f"there is no {what} {name!r} in the zoo", expected=", ".join(among)
        )
    return name
