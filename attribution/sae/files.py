"""Read sparse autoencoders from untrusted folders and from the Hugging Face Hub.

Only safetensors and JSON are read. sae-lens is imported on first use, which takes seconds.
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

WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE = ("sae_weights.safetensors", "cfg.json", "exhume.json")
PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.pickle", "*.ckpt", "*.npz")
MAX_JSON_BYTES = 1 << 20
"""Largest size of a configuration or metadata file, in bytes."""
MAX_WIDTH = 1 << 24


def sae_lens() -> Any:
    """Import sae-lens on first use.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module("sae_lens")
    except ModuleNotFoundError as error:
        raise InputError(
            f"autoencoders need {error.name}, which is not installed",
            fix="pip install 'sae-lens>=6.54,<7'",
        ) from error


def load_sae(
    source: str | Path, site: str | None = None, *, revision: str | None = None, device: str = "cpu"
) -> Sae:
    """Read a sae-lens autoencoder.

    Args:
        source: A folder with ``cfg.json`` and ``sae_weights.safetensors``, or a Hub id "owner/name"
            or "owner/name:folder inside".
        site: The site it belongs to; by default the one in its metadata.
        revision: Branch, tag or commit, for Hub ids.
        device: Where to load it.

    Raises:
        InputError: The autoencoder is missing, a pickle or damaged, or its site is unknown.

    Examples:
        >>> exhume.load_sae("sae")
        Sae(topk at resid.0, 32 -> 64)
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
                fix="Save it with sae-lens 6 or later, which writes safetensors",
            )
        raise InputError(
            f"{folder} holds no autoencoder", expected=f"{WEIGHTS_FILE} and {CONFIG_FILE}"
        )
    metadata = _read_metadata(folder)
    found_site = site if site is not None else metadata.get("site")
    if not isinstance(found_site, str):
        raise InputError(
            "the site of this autoencoder is not known",
            expected="site=, such as 'resid.12'",
            got=None if found_site is None else quoted(found_site),
        )
    _check_settings(folder)
    library = sae_lens()
    try:
        module = library.SAE.load_from_disk(folder, device=device)
    # An untrusted configuration can make the library raise any exception.
    except Exception as error:
        raise InputError(
            f"the autoencoder in {folder} cannot be read ({error})",
            fix="Save it again with sae-lens",
        ) from error
    if not all(bool(torch.isfinite(each).all()) for each in module.parameters()):
        raise InputError(f"the autoencoder in {folder} holds NaN or infinity", fix="Train it again")
    return Sae(module.eval().requires_grad_(False), found_site, metadata)


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Metadata written by ``train_sae``; empty for an autoencoder from elsewhere."""
    path = folder / METADATA_FILE
    if not path.exists():
        return {}
    metadata = read_json(path, max_bytes=MAX_JSON_BYTES)
    dead = metadata.get("dead", [])
    texts = (metadata.get(name, "") for name in ("kind", "model"))
    if (
        not all(isinstance(each, str) for each in texts)
        or not isinstance(dead, list)
        or not all(type(each) is int for each in dead)
    ):
        raise InputError(
            f"{path} is not the metadata of an autoencoder",
            expected="kind and model in words, dead as whole numbers",
        )
    return metadata


def _check_settings(folder: Path) -> None:
    """Check the widths before sae-lens allocates tensors of them."""
    settings = read_json(folder / CONFIG_FILE, max_bytes=MAX_JSON_BYTES)
    for name in ("d_in", "d_sae"):
        width = settings.get(name)
        if type(width) is not int or not 0 < width <= MAX_WIDTH:
            raise InputError(
                f"{folder / CONFIG_FILE} has no valid width",
                expected=f"{name}, a whole number up to {MAX_WIDTH:,}",
                got=quoted(width),
            )


def _download(source: str, revision: str | None) -> Path:
    """Download the safetensors and JSON files of a Hub folder."""
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
            repo, revision=revision, allow_patterns=[f"{pattern}.json", f"{pattern}.safetensors"]
        )
    except Exception as error:
        raise InputError(
            f"{repo!r} could not be downloaded from the Hub ({type(error).__name__})",
            fix="Check the name and the network, or download it and give its folder",
        ) from error
    return Path(root) / inside
