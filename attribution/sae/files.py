"""Read sparse autoencoders from untrusted folders and from the Hugging Face Hub, also by release.

Only safetensors, JSON and, for some releases, YAML are read. sae-lens is imported on first use,
which takes seconds.
"""

import importlib
from pathlib import Path
from typing import Any

import torch

from attribution.sae.autoencoder import Sae
from attribution.sae.hook_names import site_name
from attribution.sae.releases import ReleasedSae, close_releases, find_release
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
    source: str | Path,
    site: str | None = None,
    *,
    input_site: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
) -> Sae:
    """Read a sae-lens autoencoder or transcoder.

    Args:
        source: A folder with ``cfg.json`` and ``sae_weights.safetensors``, a Hub id "owner/name"
            or "owner/name:folder inside", or a release and id of sae-lens such as
            "gpt2-small-res-jb:blocks.8.hook_resid_pre".
        site: The site it belongs to, by our name or that of TransformerLens; by default the one in
            its metadata.
        input_site: The site that a transcoder reads; by default the one in its metadata.
        revision: Branch, tag or commit, for Hub ids and releases.
        device: Where to load it.

    Raises:
        InputError: The autoencoder is missing, a pickle or damaged; or its site is unknown or is
            not the one in its metadata; or as ``Sae``.

    Examples:
        >>> exhume.load_sae("sae")
        Sae(topk at resid.0, 32 -> 64)
    """
    folder = as_path(source, "the autoencoder")
    device = choose_device(device)
    released = None
    if not is_folder(folder):
        name = str(source)
        released = None if "/" in name.partition(":")[0] else _find_release(name)
        if released is not None and released.format is not None:
            return _load_converted(released, site, input_site, revision, device)
        if released is not None:
            name = f"{released.repo}:{released.folder}"
        folder = _download(name, revision, str(source))
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
    found_site = _agreed_site(site, metadata.get("site"))
    _check_settings(folder)
    module = _load(folder, device, released)
    _check_finite(module, str(folder))
    return Sae(module.eval().requires_grad_(False), found_site, metadata, input_site or "")


def _check_finite(module: Any, source: str) -> None:
    if not all(bool(torch.isfinite(each).all()) for each in module.parameters()):
        raise InputError(f"the autoencoder in {source} holds NaN or infinity", fix="Train it again")


def _load_converted(
    released: ReleasedSae,
    site: str | None,
    input_site: str | None,
    revision: str | None,
    device: str,
) -> Sae:
    """Download a release whose safetensors files sae-lens converts."""
    name = f"{released.release}:{released.sae_id}"
    if revision is not None:
        raise InputError(
            f"{name} is stored in the format {released.format!r}, of which sae-lens reads the "
            "newest revision alone",
            fix="Leave revision out",
        )
    try:
        module = sae_lens().SAE.from_pretrained(released.release, released.sae_id, device=device)
    # Files of others can make the library raise any exception.
    except Exception as error:
        raise InputError(
            f"{name} is {released.repo}:{released.folder} on the Hub, which could not be "
            f"downloaded or read ({type(error).__name__})",
            fix="Check the network",
        ) from error
    _check_finite(module, name)
    return Sae(module.eval().requires_grad_(False), site or "", {}, input_site or "")


def _find_release(name: str) -> ReleasedSae | None:
    sae_lens()
    found = find_release(name)
    if found is None:
        close = close_releases(name)
        raise InputError(
            f"there is no autoencoder at {name!r}",
            expected="a folder, a hub id such as 'owner/name:folder', or release:id of sae-lens"
            + (f", such as one of {', '.join(close)}" if close else ""),
        )
    return found


def _agreed_site(given: str | None, stated: Any) -> str:
    """The site that was given or that ``train_sae`` stated, by our name; "" for neither."""
    if stated is not None and not isinstance(stated, str):
        raise InputError(
            "the site of this autoencoder is not known",
            expected="site=, such as 'resid.12'",
            got=quoted(stated),
        )
    if given and stated and site_name(given) != stated:
        raise InputError(
            "the site is not the one that the autoencoder was trained on",
            expected=stated,
            got=given,
            fix="Leave site out",
        )
    return given or stated or ""


def _load(folder: Path, device: str, released: ReleasedSae | None) -> Any:
    library = sae_lens()
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    def read(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> Any:
        overrides = ({} if released is None else released.overrides) | (cfg_overrides or {})
        return sae_lens_disk_loader(path, device, overrides | {"device": device})

    try:
        module = library.SAE.load_from_disk(folder, device=device, converter=read)
    # An untrusted configuration can make the library raise any exception.
    except Exception as error:
        raise InputError(
            f"the autoencoder in {folder} cannot be read ({error})",
            fix="Save it again with sae-lens",
        ) from error
    factor = None if released is None else released.norm_factor
    if factor is not None and module.cfg.normalize_activations == "expected_average_only_in":
        module.fold_activation_norm_scaling_factor(factor)
    return module


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


def _download(source: str, revision: str | None, asked: str) -> Path:
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
            (f"{asked} is {source} on the Hub, which" if asked != source else f"{repo!r}")
            + f" could not be downloaded ({type(error).__name__})",
            fix="Check the name and the network, or download it and give its folder",
        ) from error
    return Path(root) / inside
