"""Records of files of items, and the choice of a split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from evidence.errors import InputError

T = TypeVar("T")
SPLIT = re.compile(
    r"(train|test|valid|validation|val|dev|eval|holdout|heldout|forget|retain|unlearn|retention"
    r"|full|all|default)([_\-.]?\w*)?",
    re.IGNORECASE,
)
"""Names of splits: "train", "forget05", "retain_perturbed"."""


@dataclass(frozen=True)
class Row:
    """One record and its location, such as "facts.jsonl, line 3"."""

    location: str
    fields: dict[str, object]


def choose_split(path: Path, parts: Mapping[str, T], split: str | None) -> T:
    """The named split, or the only one.

    Raises:
        InputError: several splits and none named, or no split of that name.
    """
    if split is None and len(parts) == 1:
        return next(iter(parts.values()))
    names = ", ".join(sorted(parts))[:200]
    if split is None:
        raise InputError(
            f"{path} holds several splits",
            expected="one split",
            got=names,
            fix=f"Name one of them, such as {path}/{next(iter(parts))}",
        )
    if split not in parts:
        raise InputError(
            f"{path} has no split {split!r}",
            expected=f"one of {names}" if names else "a path without a split",
        )
    return parts[split]
