"""The zoo: models whose state is known by construction, made again by one call."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from torch import nn

from capture.gguf import quiet
from capture.items import read_items
from capture.models import open_checkpoint
from capture.scoring import score_answers
from evidence.errors import ExhumeError, InputError
from evidence.files import folder_atomic, write_atomic
from evidence.progress import SILENT, Progress
from testbeds.bios import STANDARD, BiosConfig, BiosWorld, build_bios
from testbeds.edits import Ground
from testbeds.families import FAMILIES, Family
from testbeds.kinds import ADVERSARIES, KINDS, Kind, Range
from testbeds.planted import check_card, read_card

# Raise when a kind is made in another way: models made before are then made again.
VERSION = 1


@dataclass(frozen=True)
class Specimen:
    """A model of the zoo.

    Attributes:
        family: Shape of the model.
        seed: Of its world.
        kind: A name in ``KINDS``.
        model: Folder in Hugging Face format, with ``card.json``.
        world: Original and item files.
        card: How it was made, its state, why that is certain, what it shows.
    """

    family: Family
    seed: int
    kind: str
    model: Path
    world: BiosWorld
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """Unique in the zoo."""
        return _name(self.family, self.seed, self.kind)

    @property
    def state(self) -> str | None:
        """What it truly is; None where that has to be graded."""
        return KINDS[self.kind].state


def sized(config: BiosConfig, family: Family) -> BiosConfig:
    """The world's settings for models of ``family``: learned positions take longer."""
    return replace(
        config, family=family, steps=config.steps * (1 if family == "llama" else 2)
    )


def split() -> dict[str, Any]:
    """Which seeds, families and kinds thresholds are set and judged on."""
    text = files("testbeds").joinpath("zoo_split.json").read_text(encoding="utf-8")
    return json.loads(text)


def build_zoo(
    root: Path,
    *,
    seeds: Sequence[int],
    families: Sequence[str] = ("llama",),
    only: Sequence[str] | None = None,
    config: BiosConfig = STANDARD,
    device: str = "cpu",
    progress: Progress = SILENT,
) -> tuple[Specimen, ...]:
    """Make the models, or find them made.

    Interrupted, the same call goes on with what is missing, and several processes may
    work in one ``root``. ``manifest.json`` there lists every model with the hash of its
    weights.

    Args:
        root: Where the zoo is kept.
        seeds: Worlds; each has people of its own.
        families: Shapes of models.
        only: Kinds to make; all but the adversaries by default.
        config: Size of worlds and models.
        device: Where models are trained.
        progress: Where progress is shown.

    Raises:
        InputError: an unknown family or kind, or a folder that holds another model.
        ExhumeError: a model does not show what its kind must show.
    """
    wanted = [name for name in KINDS if name not in ADVERSARIES]
    kinds = [_known(name, KINDS, "kind") for name in (wanted if only is None else only)]
    families = [_known(name, FAMILIES, "family") for name in families]
    made: list[Specimen] = []
    with progress.task("zoo", len(seeds) * len(families) * len(kinds)) as advance:
        for family in families:
            settings = sized(config, family)
            for seed in seeds:
                for specimen in _of_world(
                    root, settings, seed, kinds, device, progress
                ):
                    made.append(specimen)
                    advance(1)
    _list(root)
    return tuple(made)


def _of_world(
    root: Path,
    config: BiosConfig,
    seed: int,
    kinds: Sequence[str],
    device: str,
    progress: Progress,
) -> Iterator[Specimen]:
    world = build_bios(config, seed, root / "worlds", device, progress)
    ground = ground_of(world, config, seed, device)
    for kind in kinds:
        out = root / "models" / _name(config.family, seed, kind)
        card = {
            "version": VERSION,
            "kind": kind,
            "state": KINDS[kind].state,
            "why": KINDS[kind].why,
            "made": (KINDS[kind].make.__doc__ or "").strip(),
            "world": asdict(config),
            "seed": seed,
            "original": ground.original.weights_hash,
            "forget": ground.forget.digest,
            "retain": ground.retain.digest,
        }
        if not _there(out, card):
            model, shown = _first_that_shows(KINDS[kind], ground)
            with folder_atomic(out) as scratch:
                with quiet():
                    model.save_pretrained(scratch)  # pyright: ignore
                    ground.tokenizer.save_pretrained(scratch)
                _write_card(scratch, card | {"measured": shown})
            digest = open_checkpoint(out).weights_hash
            _write_card(out, card | {"measured": shown, "weights": digest})
        yield Specimen(config.family, seed, kind, out, world, read_card(out))


def ground_of(world: BiosWorld, config: BiosConfig, seed: int, device: str) -> Ground:
    """What makers and the gold grade work with."""
    return Ground(
        config,
        seed,
        open_checkpoint(world.original),
        open_checkpoint(world.twin),
        read_items(world.forget),
        read_items(world.retain),
        device,
    )


def _there(out: Path, card: dict[str, Any]) -> bool:
    """Whether this very model is in its folder; what was left half-made is removed."""
    if not out.exists():
        return False
    if read_card(out).get("version") == VERSION and "weights" in check_card(out, card):
        return True
    shutil.rmtree(out)
    return False


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    write_atomic(folder / "card.json", json.dumps(card, indent=1) + "\n")


def _first_that_shows(kind: Kind, ground: Ground) -> tuple[nn.Module, dict[str, float]]:
    shown: dict[str, float] = {}
    for model in kind.make(ground):
        shown = {
            "said": _right(model, ground, ground.forget),
            "kept": _right(model, ground, ground.retain),
        }
        if _within(shown["said"], kind.said) and _within(shown["kept"], kind.kept):
            return model, shown
    raise ExhumeError(
        f"no {kind.name} was made for seed {ground.seed} ({ground.config.family}): the "
        f"last one says {shown['said']:.2f} of what was to go (wanted {kind.said}) and "
        f"{shown['kept']:.2f} of the rest (wanted {kind.kept})"
    )


def _right(model: nn.Module, ground: Ground, items) -> float:
    return float(score_answers(model, ground.rows(items)).greedy.mean())


def _within(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _list(root: Path) -> None:
    """Write the zoo's list anew from the cards of its models."""
    models = {}
    for path in sorted((root / "models").glob("*/card.json")):
        card = read_card(path.parent)
        if card.get("version") == VERSION and "weights" in card:
            models[path.parent.name] = {
                key: card[key] for key in ("kind", "state", "seed", "weights")
            } | {"family": card["world"]["family"], "measured": card["measured"]}
    text = json.dumps({"version": VERSION, "models": models}, indent=1, sort_keys=True)
    write_atomic(root / "manifest.json", text + "\n")


def _name(family: str, seed: int, kind: str) -> str:
    return f"bios-{family}-{seed}-{kind}"


def _known(name: Any, among: Any, what: str) -> Any:
    if name not in among:
        raise InputError(
            f"there is no {what} {name!r} in the zoo", expected=", ".join(among)
        )
    return name
