"""The zoo: models whose state is known by construction, made again by one call."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.schemas.library_errors import quiet_transformers
from evidence.errors import ExhumeError, InputError, check_list
from evidence.machine.devices import choose_device
from evidence.progress import SILENT, Progress
from evidence.seeds import check_seed
from evidence.storage.files import atomic_folder, read_json, write_atomic
from evidence.storage.locks import creation_lock
from evidence.storage.regular_files import as_path
from evidence.storage.removal import MODEL_FILES, delete_owned_folder
from testbeds.planted import check_card, read_card
from testbeds.zoo.kinds import Kind, Range
from testbeds.zoo.registry import WORLDS, ZooWorld, check_name, sized

__all__ = ["Specimen", "build_zoo", "sized", "split"]

# Raise when a kind is made in another way: models made before are then made again.
VERSION = 1
LIST = "manifest.json"
SPLITS = {
    "bios": "zoo_split.json",
    "smol": "smol_split.json",
    "digits": "digits_split.json",
    "codes": "codes_split.json",
}


@dataclass(frozen=True)
class Specimen:
    """A model of the zoo.

    Attributes:
        family: Shape of the model.
        seed: Of its world.
        kind: A kind of its world.
        model: Folder in Hugging Face format, with ``card.json``.
        world: Original and item files.
        card: How it was made, its state, why that is certain, what it shows.
    """

    family: Any
    seed: int
    kind: str
    model: Path
    world: Any
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique in the zoo."""
        return self.model.name

    @property
    def state(self) -> str | None:
        """What it truly is; None where that has to be graded."""
        return self.card["state"]


def split(world: str = "bios") -> dict[str, Any]:
    """Which seeds, families and kinds thresholds are set and judged on.

    Raises:
        InputError: no thresholds are set or judged on that world.
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
    progress: Progress = SILENT,
) -> tuple[Specimen, ...]:
    """Make the models, or find them made.

    Interrupted, the same call goes on with what is missing, and several processes may
    work in one ``root``. ``manifest.json`` there lists every model with the hash of its
    weights.

    Args:
        root: Where the zoo is kept.
        seeds: Of worlds; each has people, or a class to forget, of its own.
        world: "bios", "smol", "codes" or "digits".
        families: Shapes of models; the world's first one by default.
        only: Kinds to make; all but the adversaries by default.
        config: Size of worlds and models; the world's standard by default.
        device: Where models are trained.
        progress: Where progress is shown.

    Raises:
        InputError: an unknown world, family or kind, or a folder that holds another
            model.
        ExhumeError: a model does not show what its kind must show.
    """
    place = WORLDS[check_name(world, WORLDS, "world")]
    seeds = [check_seed(each) for each in check_list(seeds, "seeds")]
    kinds = check_list(only or place.default_kinds, "kinds")
    kinds = [check_name(name, place.kinds, "kind") for name in kinds]
    shapes = check_list(families or place.families[:1], "families")
    shapes = [check_name(name, place.families, "family") for name in shapes]
    device, root = choose_device(device), as_path(root, "the folder of the zoo")
    made: list[Specimen] = []
    _check_list(root)
    with progress.task("zoo", len(seeds) * len(shapes) * len(kinds)) as advance:
        for family in shapes:
            settings = place.sized(config or place.standard, family)
            for seed in seeds:
                for specimen in _build_world(
                    root, world, settings, seed, kinds, device, progress
                ):
                    made.append(specimen)
                    advance(1)
    _update_list(root)
    return tuple(made)


def _build_world(
    root: Path,
    name: str,
    config: Any,
    seed: int,
    kinds: Sequence[str],
    device: str,
    progress: Progress,
) -> Iterator[Specimen]:
    place = WORLDS[name]
    world = place.build(config, seed, root / "worlds", device, progress)
    ground = place.workbench(world, config, seed, device)
    for each in kinds:
        kind = place.kinds[each]
        out = root / "models" / f"{name}-{config.family}-{seed}-{each}"
        card = {
            "version": VERSION,
            "kind": each,
            "state": kind.state,
            "why": kind.why,
            "made": (kind.edit.__doc__ or "").strip(),
            "world": asdict(config),
            "seed": seed,
            "original": ground.original.weights_hash,
            **place.digests(ground),
        }
        if not _is_built(out, card):
            with creation_lock(out, progress):
                if not _is_built(out, card):
                    _make(kind, ground, place, card, out)
        yield Specimen(config.family, seed, each, out, world, read_card(out))


def _make(
    kind: Kind, ground: Any, place: ZooWorld, card: dict[str, Any], out: Path
) -> None:
    if os.path.lexists(out):  # half-made, or made in another way
        delete_owned_folder(out, MODEL_FILES)
    model, shown = _first_in_range(kind, ground, place)
    with atomic_folder(out) as scratch:
        with quiet_transformers():
            model.save_pretrained(scratch)  # pyright: ignore
            place.save(ground, scratch)
        _write_card(scratch, card | {"measured": shown})
    digest = open_checkpoint(out).weights_hash
    _write_card(out, card | {"measured": shown, "weights": digest})


def _is_built(out: Path, card: dict[str, Any]) -> bool:
    """Whether this very model is in its folder, and not half-made or of old.

    Raises:
        InputError: something else is there.
    """
    if not out.exists():
        return False
    found = read_card(out)
    if not {"version", "kind", "state", "made", "original"} <= found.keys():
        raise InputError(
            f"{out} holds a model that is not the zoo's",
            fix="Move it away, or choose another folder",
        )
    return found["version"] == VERSION and "weights" in check_card(out, card)


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    write_atomic(folder / "card.json", json.dumps(card, indent=1) + "\n")


def _first_in_range(
    kind: Kind, ground: Any, place: ZooWorld = WORLDS["bios"]
) -> tuple[nn.Module, dict[str, float]]:
    shown: dict[str, float] = {}
    for model in kind.edit(ground):
        shown = place.measure(model, ground)
        if _within(shown["said"], kind.forget_range) and _within(
            shown["kept"], kind.retain_range
        ):
            return model, shown
    raise ExhumeError(
        f"no {kind.name} was made for seed {ground.seed} ({ground.config.family}): the "
        f"last one says {shown['said']:.2f} of what was to go (wanted {kind.forget_range}) and "
        f"{shown['kept']:.2f} of the rest (wanted {kind.retain_range})"
    )


def _within(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _update_list(root: Path) -> None:
    """Write the zoo's list anew from the cards of its models."""
    with creation_lock(root / LIST):
        _write_list(root)


def _check_list(root: Path) -> None:
    """The list is replaced, so what has its name must be one.

    Raises:
        InputError: it is something else.
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
