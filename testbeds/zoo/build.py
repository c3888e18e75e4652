"""Build the zoo: models whose state is known by construction."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from capture.checkpoints.open import open_checkpoint
from evidence.errors import ExhumeError, InputError, check_list
from evidence.machine.devices import choose_device
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import check_seed
from evidence.storage.files import read_json, write_atomic
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import as_path
from evidence.storage.removal import MODEL_FILES, delete_owned_folder
from evidence.typed_json import Json
from testbeds.edits.workbench import Workbench
from testbeds.planted import check_card, read_card
from testbeds.worlds.base import make_once, save_model, settings_of
from testbeds.zoo.kinds import FORGOTTEN, RETAINED, Kind, Range
from testbeds.zoo.registry import WORLDS, check_name, sized

__all__ = ["Specimen", "build_zoo", "sized", "split"]

# Raise when a kind is made differently; models of earlier versions are then rebuilt.
VERSION = 1
LIST = "manifest.json"
SPLITS = {
    "bios": "zoo_split.json",
    "bios_frozen": "frozen_split.json",
    "smol": "smol_split.json",
    "digits": "digits_split.json",
    "codes": "codes_split.json",
}


@dataclass(frozen=True, repr=False)
class Specimen:
    """A model of the zoo.

    Attributes:
        family: Architecture of the model.
        seed: Seed of its world.
        kind: A kind of its world.
        model: Folder in Hugging Face format, with ``card.json``.
        world: Original and item files.
        card: How it was made, its state, why that is certain, and measurements.

    Examples:
        >>> from pathlib import Path
        >>> (twin,) = exhume.build_zoo(Path("zoo"), seeds=[1], only=["twin"], config=small_world)
        >>> twin.state, twin.card["why"]
        ('deleted', 'the facts were in none of its training rows')
    """

    family: Any
    seed: int
    kind: str
    model: Path
    world: Any
    card: dict[str, Any]

    def __repr__(self) -> str:
        return f"Specimen({self.name!r}, state {self.state or 'to be graded'!r})"

    @property
    def name(self) -> str:
        """Unique name in the zoo."""
        return self.model.name

    @property
    def state(self) -> str | None:
        """True state; None if it has to be graded."""
        return self.card["state"]


def split(world: str = "bios") -> dict[str, Any]:
    """Seeds, families and kinds for tuning and for testing thresholds.

    Raises:
        InputError: the world has no split.
    """
    name = SPLITS[check_name(world, SPLITS, "world with a split")]
    text = files("testbeds.zoo").joinpath(name).read_text(encoding="utf-8")
    return json.loads(text)


def build_zoo(
    root: Path,
    *,
    seeds: Sequence[int],
    world: str = "bios",
    families: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    config: Any = None,
    device: str = "cpu",
    progress: Progress = AUTO,
) -> tuple[Specimen, ...]:
    """Build the models, or find them built.

    An interrupted call can be repeated and continues with the missing models; several processes may
    work in one ``root``. ``manifest.json`` there lists every model with the hash of its weights.

    Args:
        root: Folder of the zoo.
        seeds: Seeds of worlds; each has its own people, or class to forget.
        world: "bios", "bios_frozen", "smol", "codes" or "digits".
        families: Architectures; the world's first one by default.
        only: Kinds to build; all except the adversaries by default.
        config: Size of worlds and models; the world's standard by default.
        device: Where models are trained.
        progress: One unit a model.

    Raises:
        InputError: an unknown world, family or kind, or a folder with another model.
        ExhumeError: no model is within the ranges of its kind.

    Examples:
        >>> from pathlib import Path
        >>> exhume.build_zoo(Path("zoo"), seeds=[1], only=["untouched", "twin"], config=small_world)
        (Specimen('bios-llama-1-untouched', state 'not_unlearned'), Specimen('bios-llama-1-twin',
        state 'deleted'))
    """
    spec = WORLDS[check_name(world, WORLDS, "world")]
    seeds = [check_seed(value) for value in check_list(seeds, "seeds")]
    kinds = check_list(only or spec.default_kinds, "kinds")
    kinds = [check_name(name, spec.kinds, "kind") for name in kinds]
    shapes = check_list(families or spec.families[:1], "families")
    shapes = [check_name(name, spec.families, "family") for name in shapes]
    device, root = choose_device(device), as_path(root, "the folder of the zoo")
    specimens: list[Specimen] = []
    _check_list(root)
    with as_progress(progress).task("zoo", len(seeds) * len(shapes) * len(kinds)) as advance:
        for family in shapes:
            settings = spec.sized(config or spec.standard, family)
            for seed in seeds:
                for specimen in _build_world(root, world, settings, seed, kinds, device, progress):
                    specimens.append(specimen)
                    advance(1)
    _update_list(root)
    return tuple(specimens)


def _build_world(
    root: Path,
    name: str,
    config: Any,
    seed: int,
    kinds: Sequence[str],
    device: str,
    progress: Progress,
) -> Iterator[Specimen]:
    spec = WORLDS[name]
    world = spec.build(config, seed, root / "worlds", device, progress)
    bench = spec.workbench(world, config, seed, device)
    for kind_id in kinds:
        kind = spec.kinds[kind_id]
        out = root / "models" / f"{name}-{config.family}-{seed}-{kind_id}"
        card: dict[str, Json] = {
            "version": VERSION,
            "kind": kind_id,
            **({} if kind.check else {"state": kind.state, "why": kind.why}),
            "made": (kind.edit.__doc__ or "").strip(),
            "world": settings_of(config),
            "seed": seed,
            "original": bench.original.weights_hash,
            **bench.digests(),
        }
        make_once(
            partial(_is_built, out, card), out, partial(_make, kind, bench, card, out), progress
        )
        yield Specimen(config.family, seed, kind_id, out, world, read_card(out))


def _make(kind: Kind, bench: Workbench, card: dict[str, Json], out: Path) -> None:
    if os.path.lexists(out):  # incomplete, or of another version
        delete_owned_folder(out, MODEL_FILES)
    model, measured = _first_in_range(kind, bench)
    card = {**card, "measured": measured, **_decided(kind, bench, model, measured)}
    save_model(model, out, bench.tokenizer, {"card.json": _card_text(card)})  # pyright: ignore
    card["weights"] = open_checkpoint(out).weights_hash
    write_atomic(out / "card.json", _card_text(card))


def _decided(
    kind: Kind, bench: Workbench, model: nn.Module, measured: Mapping[str, float]
) -> dict[str, Json]:
    """State, reason and figures of a kind whose state is decided on the finished model."""
    if kind.check is None:
        return {}
    checks = kind.check(bench, model)
    silent = _within(measured["said"], FORGOTTEN) and _within(measured["kept"], RETAINED)
    if not silent:
        why = (
            f"to be graded: it says {measured['said']:.2f} of what is to go and "
            f"{measured['kept']:.2f} of what is to stay"
        )
    else:
        why = checks.why()
    state = "suppressed" if silent and not checks.failures else None
    return {"state": state, "why": why, "front": checks.to_json()}


def _is_built(out: Path, card: Mapping[str, Json]) -> bool:
    """Whether this model is in its folder, complete and of this version.

    Raises:
        InputError: something else is there.
    """
    if not out.exists():
        return False
    stored = read_card(out)
    if not {"version", "kind", "state", "made", "original"} <= stored.keys():
        raise InputError(
            f"{out} holds a model that does not belong to the zoo",
            fix="Move it away, or choose another folder",
        )
    return stored["version"] == VERSION and "weights" in check_card(out, card)


def _card_text(card: Mapping[str, Json]) -> str:
    return json.dumps(card, indent=1) + "\n"


def _first_in_range(kind: Kind, bench: Workbench) -> tuple[nn.Module, dict[str, float]]:
    measured: dict[str, float] = {}
    for model in kind.edit(bench):
        measured = bench.measured(model)
        if _within(measured["said"], kind.forget_range) and _within(
            measured["kept"], kind.retain_range
        ):
            return model, measured
    raise ExhumeError(
        f"no {kind.name} was made for seed {bench.seed} ({bench.config.family}): the last model "
        f"answers {measured['said']:.2f} of the forget set (range {kind.forget_range}) and "
        f"{measured['kept']:.2f} of the retain set (range {kind.retain_range})"
    )


def _within(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _update_list(root: Path) -> None:
    """Rewrite the zoo's list from the cards of its models."""
    with creation_lock(root / LIST):
        _write_list(root)


def _check_list(root: Path) -> None:
    """Check that a file with the list's name is a list, because it will be replaced.

    Raises:
        InputError: it is not.
    """
    path = root / LIST
    if os.path.lexists(path) and not {"version", "models"} <= read_json(path).keys():
        raise InputError(
            f"{path} is not the list of a zoo", fix="Choose another folder for the zoo"
        )


def _write_list(root: Path) -> None:
    models = {}
    for path in sorted((root / "models").glob("*/card.json")):
        card = read_card(path.parent)
        if card.get("version") == VERSION and "weights" in card:
            models[path.parent.name] = {
                key: card[key] for key in ("kind", "state", "seed", "weights")
            } | {"family": card["world"]["family"], "measured": card["measured"]}
    text = json.dumps({"version": VERSION, "models": models}, indent=1, sort_keys=True)
    write_atomic(root / LIST, text + "\n")
