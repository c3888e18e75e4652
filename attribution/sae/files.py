"""Reading sparse autoencoders that nobody vouches for.

The models themselves are sae-lens's; importing this file does not import it, as that
takes seconds. Only safetensors and JSON are read.
"""

import importlib
from pathlib import Path
from typing import Any

import torch

from attribution.sae.autoencoder import Sae
from evidence.errors import InputError, quoted
from evidence.machine.devices import choose_device
from evidence.storage.files import read_json
from evidence.storage.regular_files import as_path, is_file, is_folder

WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE = (
    "sae_weights.safetensors",
    "cfg.json",
    "exhume.json",
)
PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.pickle", "*.ckpt", "*.npz")
MAX_JSON_BYTES = 1 << 20
"""Bytes of a file of settings, and of a note."""
MAX_WIDTH = 1 << 24


def sae_lens() -> Any:
    """The library, imported when it is first needed.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("sae_lens")
    except ModuleNotFoundError as error:
        raise InputError(
            f"autoencoders need {error.name}, which is not installed",
            fix="pip install 'sae-lens>=6.54,<7'",
        ) from error


def load_sae(
    source: str | Path,
    site: str | None = None,
    *,
    revision: str | None = None,
    device: str = "cpu",
) -> Sae:
    """Read a sae-lens autoencoder.

    Args:
        source: A folder with ``cfg.json`` and ``sae_weights.safetensors``, or a hub id
            "owner/name" or "owner/name:folder inside".
        site: Which site it belongs to; as written beside it if None.
        revision: Branch, tag or commit, for hub ids.
        device: Where to.

    Raises:
        InputError: nothing is there, it is a pickle, it is damaged, or no site is
            known.
    """
    folder = as_path(source, "the autoencoder")
    device = choose_device(device)
    if not is_folder(folder):
        folder = _download(str(source), revision)
    if not is_file(folder / WEIGHTS_FILE) or not is_file(folder / CONFIG_FILE):
        pickles = [each.name for kind in PICKLES for each in folder.glob(kind)]
        if pickles:
            raise InputError(
                f"{pickles[0]} may run code when it is opened, and is not read",
                expected=f"{WEIGHTS_FILE} and {CONFIG_FILE}",
                got=", ".join(sorted(pickles)[:3]),
                fix="Have it saved by sae-lens 6 or later, which writes safetensors",
            )
        raise InputError(
            f"{folder} holds no autoencoder",
            expected=f"{WEIGHTS_FILE} and {CONFIG_FILE}",
        )
    note = _read_metadata(folder)
    place = site if site is not None else note.get("site")
    if not isinstance(place, str):
        raise InputError(
            "it is not known which site this autoencoder belongs to",
            expected="site=, such as 'resid.12'",
            got=None if place is None else quoted(place),
        )
    _check_settings(folder)
    library = sae_lens()
    try:
        module = library.SAE.load_from_disk(folder, device=device)
    # Its settings may name anything: the library raises what it likes.
    except Exception as error:
        raise InputError(
            f"the autoencoder in {folder} cannot be read ({error})",
            fix="Have it saved again by sae-lens",
        ) from error
    if not all(bool(torch.isfinite(each).all()) for each in module.parameters()):
        raise InputError(
            f"the autoencoder in {folder} holds NaN or infinity",
            fix="Have it trained again",
        )
    return Sae(module.eval().requires_grad_(False), place, note)


def _read_metadata(folder: Path) -> dict[str, Any]:
    """What was written down when it was trained; empty for one from elsewhere."""
    path = folder / METADATA_FILE
    if not path.exists():
        return {}
    note = read_json(path, max_bytes=MAX_JSON_BYTES)
    dead = note.get("dead", [])
    texts = (note.get(name, "") for name in ("kind", "model"))
    if (
        not all(isinstance(each, str) for each in texts)
        or not isinstance(dead, list)
        or not all(type(each) is int for each in dead)
    ):
        raise InputError(
            f"{path} is not a note on an autoencoder",
            expected="kind and model in words, dead as whole numbers",
        )
    return note


def _check_settings(folder: Path) -> None:
    """Refuse widths that are no widths before the library makes tensors of them."""
    settings = read_json(folder / CONFIG_FILE, max_bytes=MAX_JSON_BYTES)
    for name in ("d_in", "d_sae"):
        width = settings.get(name)
        if type(width) is not int or not 0 < width <= MAX_WIDTH:
            raise InputError(
                f"{folder / CONFIG_FILE} does not say how wide the autoencoder is",
                expected=f"{name}, a whole number up to {MAX_WIDTH:,}",
                got=quoted(width),
            )


def _download(source: str, revision: str | None) -> Path:
    """A hub folder with nothing but safetensors and JSON."""
    repo, _, inside = source.partition(":")
    if repo.count("/") != 1 or ".." in inside.split("/") or inside.startswith("/"):
        raise InputError(
            f"there is no autoencoder at {source!r}",
            expected="a folder, or a hub id such as 'owner/name:folder'",
        )
    from huggingface_hub import snapshot_download

    pattern = f"{inside}/*" if inside else "*"
    try:
        root = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[f"{pattern}.json", f"{pattern}.safetensors"],
        )
    except Exception as error:
        raise InputError(
            f"the hub did not give {repo!r} ({type(error).__name__})",
            fix="Check the name and the network, or download it and give its folder",
        ) from error
    return Path(root) / inside
