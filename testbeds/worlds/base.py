"""Worlds on disk: name of the folder, resuming, models, manifest."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from capture.checkpoints.schemas.library_errors import quiet_transformers
from evidence.progress import Progress
from evidence.storage.files import atomic_folder, read_json, write_atomic
from evidence.storage.locks import creation_lock

# Settings that came later, with the value at which worlds are what they were before.
LATER_SETTINGS = {"frozen_blocks": 0}


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration, as cards, manifests and names of folders hold them.

    A later setting is left out at its default, so that finished worlds stay valid.
    """
    return {
        name: value
        for name, value in asdict(config).items()
        if name not in LATER_SETTINGS or value != LATER_SETTINGS[name]
    }


@dataclass(frozen=True)
class World:
    """A world with two models and files of data; every further field is the path of a file.

    Attributes:
        root: Folder of all that follows.
        original: Model that was taught everything.
        twin: Model that was never taught what is to be forgotten (counterfactual retrain).
    """

    SUFFIX: ClassVar[str]

    root: Path
    original: Path
    twin: Path

    @classmethod
    def at(cls, root: Path) -> Self:
        """The world of a folder, finished or not."""
        files = [field.name for field in fields(cls)[3:]]
        return cls(
            root, root / "original", root / "twin", *(root / f"{n}{cls.SUFFIX}" for n in files)
        )

    @property
    def models(self) -> tuple[Path, Path]:
        """Original and twin."""
        return self.original, self.twin

    def manifest(self) -> dict[str, object]:
        """Settings, seed and measured knowledge of the models."""
        return read_json(self.root / "manifest.json")

    def built_by(self, fill: Callable[[], Mapping[str, object]], progress: Progress) -> Self:
        """The finished world.

        Args:
            fill: Makes the missing parts and returns the manifest, which is written last.
            progress: Shows a wait for another process.
        """
        path = self.root / "manifest.json"

        def make() -> None:
            write_atomic(path, json.dumps(fill(), indent=2) + "\n")

        make_once(path.is_file, self.root, make, progress)
        return self


def world_folder(
    root: Path, name: str, recipe: int, seed: int, settings: Mapping[str, object]
) -> Path:
    """Folder of a world, named by a hash of what it is made from.

    Args:
        root: Folder of worlds.
        name: Start of the folder's name.
        recipe: Version of the code; another one gives another world.
        seed: Seed of the world.
        settings: Fields of its configuration.
    """
    key = json.dumps([recipe, seed, settings], sort_keys=True)
    return root / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def make_once(
    is_made: Callable[[], bool], target: Path, make: Callable[[], None], progress: Progress
) -> None:
    """Call ``make`` unless ``is_made``; one process makes ``target`` at a time."""
    if not is_made():
        with creation_lock(target, progress):
            if not is_made():
                make()


def save_model(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Save in Hugging Face format, atomically.

    Args:
        model: The model.
        folder: A new folder.
        tokenizer: Saved beside the weights.
        files: Name to text of further files.
    """
    with atomic_folder(folder) as scratch:
        with quiet_transformers():
            model.save_pretrained(scratch)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
        for name, text in (files or {}).items():
            (scratch / name).write_text(text, encoding="utf-8")
