"""Autoencoders by the names that sae-lens gives them: release and id."""

import difflib
from dataclasses import dataclass
from typing import Any

from evidence.errors import InputError

SAFE_FORMATS = (
    "gemma_3",
    "llama_scope",
    "llama_scope_r1_distill",
    "mntss_clt_layer_transcoder",
    "mwhanna_transcoder",
    "sparsify",
)
"""Formats of which sae-lens reads safetensors, JSON and YAML alone; others are pickles or npz."""


@dataclass(frozen=True)
class ReleasedSae:
    """Where the files of a released autoencoder are.

    Attributes:
        release: Name in sae-lens.
        sae_id: Name in the release.
        format: One of ``SAFE_FORMATS``; None for that of sae-lens.
        repo: Hub id.
        folder: Folder in the repository.
        overrides: Settings that take the place of those in its configuration.
        norm_factor: Factor of the states that training used and the weights do not include.
    """

    release: str
    sae_id: str
    format: str | None
    repo: str
    folder: str
    overrides: dict[str, Any]
    norm_factor: float | None


def find_release(name: str) -> ReleasedSae | None:
    """The files of "release:id"; None if sae-lens knows no such release.

    Raises:
        InputError: The release has no such id, or no id is given; or its files are pickles or
            npz, which are not read.
    """
    from sae_lens.loading.pretrained_saes_directory import (
        get_config_overrides,
        get_norm_scaling_factor,
        get_pretrained_saes_directory,
    )

    release, _, sae_id = name.partition(":")
    found = get_pretrained_saes_directory().get(release)
    if found is None:
        return None
    if sae_id not in found.saes_map:
        close = difflib.get_close_matches(sae_id, found.saes_map, 3) if sae_id else []
        ids = [f"{release}:{each}" for each in (close or list(found.saes_map)[:3])]
        raise InputError(
            f"the release {release} has {len(found.saes_map)} autoencoders"
            + (f", and none is {sae_id!r}" if sae_id else ", and no id is given"),
            expected=f"release:id, such as {', '.join(ids)}",
        )
    if found.conversion_func is not None and found.conversion_func not in SAFE_FORMATS:
        raise InputError(
            f"{name} is stored in the format {found.conversion_func!r}, not as safetensors, and is "
            "not read",
            expected=f"a release in the format of sae-lens, or of {', '.join(SAFE_FORMATS)}",
            fix="If you trust its files, load it with sae_lens.SAE.from_pretrained and give the "
            "object to exhume.Sae",
        )
    overrides = get_config_overrides(release, sae_id)
    factor = get_norm_scaling_factor(release, sae_id)
    folder = found.saes_map[sae_id]
    return ReleasedSae(
        release, sae_id, found.conversion_func, found.repo_id, folder, overrides, factor
    )


def close_releases(name: str) -> list[str]:
    """Names of releases like ``name``."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return difflib.get_close_matches(name.partition(":")[0], get_pretrained_saes_directory(), 3)
