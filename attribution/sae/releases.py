"""Autoencoders by the names that sae-lens gives them: release and id."""

import difflib
from dataclasses import dataclass
from typing import Any

from evidence.errors import InputError


@dataclass(frozen=True)
class ReleasedSae:
    """Where the files of a released autoencoder are.

    Attributes:
        repo: Hub id.
        folder: Folder in the repository.
        overrides: Settings that take the place of those in its configuration.
        norm_factor: Factor of the states that training used and the weights do not include.
    """

    repo: str
    folder: str
    overrides: dict[str, Any]
    norm_factor: float | None


def find_release(name: str) -> ReleasedSae | None:
    """The files of "release:id"; None if sae-lens knows no such release.

    Raises:
        InputError: The release has no such id, or no id is given; or its files are of a format
            that this toolkit does not read, such as pickles.
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
    if found.conversion_func is not None:
        raise InputError(
            f"{name} is stored in the format {found.conversion_func!r}, which may be a pickle, and "
            "is not read",
            expected="a release in the format of sae-lens (cfg.json and sae_weights.safetensors)",
            fix="If you trust its files, load it with sae_lens.SAE.from_pretrained and give the "
            "object to exhume.Sae",
        )
    overrides = get_config_overrides(release, sae_id)
    factor = get_norm_scaling_factor(release, sae_id)
    return ReleasedSae(found.repo_id, found.saes_map[sae_id], overrides, factor)


def close_releases(name: str) -> list[str]:
    """Names of releases like ``name``."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return difflib.get_close_matches(name.partition(":")[0], get_pretrained_saes_directory(), 3)
