"""``exhume compare``: several audits side by side, and whether they are comparable.

Verdicts of two candidates are comparable only where both audits used the same original, items,
floor, settings and code. Differences are found here and reported first; nothing is ranked.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from audits.report.formatting import last_part
from audits.report.glossary import is_image_audit
from audits.run.api import Audit, load
from evidence.errors import InputError, check_list
from evidence.storage.files import utf8_path
from evidence.storage.regular_files import as_path

MAX_SHOWN_CHARS = 80
"""Characters of a value that are shown; full values are compared."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Finished audits, in the given order.

    Attributes:
        names: Folder names, extended by parent folders where two are equal.
        differences: Differences of inputs, settings or code, in sentences; empty where verdicts
            are comparable.
    """

    names: tuple[str, ...]
    audits: tuple[Audit, ...]
    differences: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes, in order of first appearance."""
        return tuple(dict.fromkeys(name for each in self.audits for name in each.axes))

    def to_frame(self) -> pd.DataFrame:
        """One row an audit: verdict, output, utility, and the main residual of each axis."""
        pairs = zip(self.names, self.audits, strict=True)
        return pd.DataFrame([_row(name, each, self.axes) for name, each in pairs])

    def __repr__(self) -> str:
        lines = [
            f"{name}: {each.verdict}"
            for name, each in zip(self.names, self.audits, strict=True)
        ]
        return "\n".join([*lines, *(f"! {each}" for each in self.differences)])


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Read finished audits and find the differences of their inputs.

    Args:
        folders: Output folders of two or more audits.

    Raises:
        InputError: fewer than two folders, one given twice, or one without an audit.
    """
    places = [as_path(each, "an audit") for each in check_list(folders, "audits")]
    if len(places) < 2:
        raise InputError(
            "there is nothing to compare",
            expected="output folders of two or more audits",
            got=f"{len(places)}",
        )
    known: dict[Path, Path] = {}
    for place in places:
        whole = Path(os.path.realpath(place))
        if whole in known:
            raise InputError(
                "an audit is named twice",
                got=f"{known[whole]} and {place}",
                fix="name each folder once",
            )
        known[whole] = place
    audits = tuple(load(place) for place in places)
    names = _names(list(known))
    differences = _differences(names, [each.document for each in audits])
    return Comparison(names, audits, differences)


def _names(places: Sequence[Path]) -> tuple[str, ...]:
    """The shortest path suffixes that are unique."""
    parts = [place.with_suffix("") if place.is_file() else place for place in places]
    for depth in range(1, max(len(place.parts) for place in parts) + 1):
        names = [utf8_path("/".join(place.parts[-depth:])) for place in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(utf8_path(str(place)) for place in places)


def _row(name: str, audit: Audit, axes: Sequence[str]) -> dict[str, Any]:
    document = audit.document
    verdict, said = document["verdict"], document["behaviour"]
    chances = verdict["probabilities"] or {}
    row: dict[str, Any] = {
        "audit": name,
        "candidate": _source(document, "unlearned"),
        "verdict": verdict["class"],
        "probability": chances.get(verdict["class"], nan),
        "said_before": said["forget_original"],
        "said": said["forget_unlearned"],
        "said_floor": said["forget_floor"],
        "retain_kept": said["utility"].get("retain accuracy", nan),
    }
    everything = audit.axes
    for axis in axes:
        found = everything.get(axis)
        main = found.main_reading if found else None
        low, high = main.residual_interval if main else (nan, nan)
        row |= {
            axis: found.status if found else "not run",
            f"{axis}_residual": main.residual if main else nan,
            f"{axis}_low": low,
            f"{axis}_high": high,
        }
    return row


def _source(document: Mapping[str, Any], role: str) -> str:
    models = document["manifest"]["models"]
    return next(
        (last_part(each["source"]) for each in models if each["role"] == role), ""
    )


def _differences(
    names: Sequence[str], documents: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
    """One sentence for each difference, with the audits on each side."""
    asked = [
        {what: read(each) for what, read in _SAME.items()}
        | _settings(each["config"])
        | {"code": each["manifest"]["code_sha256"]}
        for each in documents
    ]
    found = []
    for what in dict.fromkeys(name for each in asked for name in each):
        groups: dict[str, list[str]] = {}
        for name, each in zip(names, asked, strict=True):
            groups.setdefault(each.get(what, "not said"), []).append(name)
        if len(groups) > 1:
            said = "; ".join(
                f"{value[:MAX_SHOWN_CHARS]}: {', '.join(who)}"
                for value, who in groups.items()
            )
            found.append(f"Not the same {what}. {said}.")
    return tuple(found)


def _settings(value: Any, name: str = "") -> dict[str, str]:
    """Every setting by its dotted name; audits may have arbitrary settings."""
    if not isinstance(value, dict):
        return {name: value if isinstance(value, str) else json.dumps(value)}
    return {
        place: text
        for key in sorted(value)
        for place, text in _settings(value[key], f"{name}.{key}".strip(".")).items()
    }


def _hash_of(role: str):
    def read(document: Mapping[str, Any]) -> str:
        models = document["manifest"]["models"]
        hashes = sorted(each["sha256"] for each in models if each["role"] == role)
        return ", ".join(hashes) or "none"

    return read


def _items_of(role: str):
    def read(document: Mapping[str, Any]) -> str:
        items = document["manifest"]["items"]
        return next((each["sha256"] for each in items if each["role"] == role), "")

    return read


def _references(document: Mapping[str, Any]) -> str:
    models = document["manifest"]["models"]
    others = [each for each in models if each["role"] not in ("original", "unlearned")]
    return ", ".join(sorted(each["sha256"] for each in others)) or "none"


# What must be equal besides settings and code: its name, and how to read it from a document.
_SAME = {
    "kind of data": lambda d: "images" if is_image_audit(d) else "texts",
    "original (weights)": _hash_of("original"),
    "references (weights)": _references,
    "forget set": _items_of("forget"),
    "retain set": _items_of("retain"),
    "never-taught set": _items_of("never_taught"),
    "floor": lambda d: d["verdict"]["floor"].replace("_", "-"),
}
