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
from audits.run.api import Audit, load
from evidence.display.html_table import frame_html
from evidence.errors import InputError, check_list, printable
from evidence.storage.files import utf8_path
from evidence.storage.regular_files import as_path
from evidence.typed_json import Json

MAX_SHOWN_CHARS = 80
"""Characters of a value that are shown; full values are compared."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Finished audits, in the given order.

    Attributes:
        names: Folder names, extended by parent folders where two are equal.
        differences: Differences of inputs, settings or code, in sentences; empty where verdicts
            are comparable.

    Examples:
        >>> found = exhume.compare(["finished", "finished-behaviour"])
        >>> found.to_frame()[["audit", "verdict", "exact_match_before", "exact_match"]].round(2)
                        audit       verdict  exact_match_before  exact_match
        0            finished    suppressed                 1.0          0.0
        1  finished-behaviour  inconclusive                 1.0          0.0
    """

    names: tuple[str, ...]
    audits: tuple[Audit, ...]
    differences: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes, in order of first appearance."""
        return tuple(dict.fromkeys(name for audit in self.audits for name in audit.axes))

    def to_frame(self) -> pd.DataFrame:
        """One row an audit: verdict, output, utility, and the main residual of each axis."""
        pairs = zip(self.names, self.audits, strict=True)
        return pd.DataFrame([_row(name, audit, self.axes) for name, audit in pairs])

    def __repr__(self) -> str:
        lines = [
            f"{name}: {audit.verdict}" for name, audit in zip(self.names, self.audits, strict=True)
        ]
        lines += [f"! {difference}" for difference in self.differences]
        return "\n".join(map(printable, lines))

    def _repr_html_(self) -> str:
        return frame_html("\n".join(self.differences) or "Audits", self.to_frame())


def compare(folders: Sequence[Path | str]) -> Comparison:
    """Read finished audits and find the differences of their inputs.

    Args:
        folders: Output folders of two or more audits.

    Raises:
        InputError: fewer than two folders, one given twice, or one without an audit.

    Examples:
        >>> exhume.compare(["finished", "finished-behaviour"])
        finished: suppressed
        finished-behaviour: inconclusive
        ! Not the same axes. ["behaviour", "decodability"]: finished; ["behaviour"]:
        finished-behaviour.
    """
    paths = [as_path(folder, "an audit") for folder in check_list(folders, "audits")]
    if len(paths) < 2:
        raise InputError(
            "there is nothing to compare",
            expected="output folders of two or more audits",
            got=f"{len(paths)}",
        )
    given: dict[Path, Path] = {}
    for path in paths:
        resolved = Path(os.path.realpath(path))
        if resolved in given:
            raise InputError(
                "an audit is named twice",
                got=f"{given[resolved]} and {path}",
                fix="name each folder once",
            )
        given[resolved] = path
    audits = tuple(load(path) for path in paths)
    names = _names(list(given))
    differences = _differences(names, [audit.document for audit in audits])
    return Comparison(names, audits, differences)


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The shortest path suffixes that are unique."""
    parts = [path.with_suffix("") if path.is_file() else path for path in paths]
    for depth in range(1, max(len(path.parts) for path in parts) + 1):
        names = [utf8_path("/".join(path.parts[-depth:])) for path in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(utf8_path(str(path)) for path in paths)


def _row(name: str, audit: Audit, axes: Sequence[str]) -> dict[str, Json]:
    document = audit.document
    verdict, behaviour = document["verdict"], document["behaviour"]
    probabilities = verdict["probabilities"] or {}
    row: dict[str, Json] = {
        "audit": name,
        "candidate": _source(document, "unlearned"),
        "verdict": verdict["class"],
        "probability": probabilities.get(verdict["class"], nan),
        "exact_match_before": behaviour["forget_original"],
        "exact_match": behaviour["forget_unlearned"],
        "exact_match_floor": behaviour["forget_floor"],
        "retain_kept": behaviour["utility"].get("retain accuracy", nan),
    }
    results = audit.axes
    for axis in axes:
        result = results.get(axis)
        main = result.main_reading if result else None
        low, high = main.residual_interval if main else (nan, nan)
        row |= {
            axis: result.status if result else "not run",
            f"{axis}_residual": main.residual if main else nan,
            f"{axis}_low": low,
            f"{axis}_high": high,
        }
    return row


def _source(document: Mapping[str, Any], role: str) -> str:
    models = document["manifest"]["models"]
    return next((last_part(model["source"]) for model in models if model["role"] == role), "")


def _differences(names: Sequence[str], documents: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """One sentence for each difference, with the audits on each side."""
    facts = [
        {name: read(document) for name, read in _SAME.items()}
        | _settings(document["config"])
        | {"code": document["manifest"]["code_sha256"]}
        for document in documents
    ]
    differences = []
    for fact in dict.fromkeys(name for table in facts for name in table):
        groups: dict[str, list[str]] = {}
        for name, table in zip(names, facts, strict=True):
            groups.setdefault(table.get(fact, "not stated"), []).append(name)
        if len(groups) > 1:
            values = "; ".join(
                f"{value[:MAX_SHOWN_CHARS]}: {', '.join(holders)}"
                for value, holders in groups.items()
            )
            differences.append(f"Not the same {fact}. {values}.")
    return tuple(differences)


def _settings(value: Any, name: str = "") -> dict[str, str]:
    """Every setting by its dotted name; audits may have arbitrary settings."""
    if not isinstance(value, dict):
        return {name: value if isinstance(value, str) else json.dumps(value)}
    return {
        dotted: text
        for key in sorted(value)
        for dotted, text in _settings(value[key], f"{name}.{key}".strip(".")).items()
    }


def _hash_of(role: str):
    def read(document: Mapping[str, Any]) -> str:
        models = document["manifest"]["models"]
        hashes = sorted(model["sha256"] for model in models if model["role"] == role)
        return ", ".join(hashes) or "none"

    return read


def _items_of(role: str):
    def read(document: Mapping[str, Any]) -> str:
        items = document["manifest"]["items"]
        return next((item_set["sha256"] for item_set in items if item_set["role"] == role), "")

    return read


def _references(document: Mapping[str, Any]) -> str:
    models = document["manifest"]["models"]
    others = [model for model in models if model["role"] not in ("original", "unlearned")]
    return ", ".join(sorted(model["sha256"] for model in others)) or "none"


# What must be equal besides settings and code: its name, and how to read it from a document.
_SAME = {
    "kind of data": lambda d: "images" if d["modality"] == "images" else "texts",
    "original (weights)": _hash_of("original"),
    "references (weights)": _references,
    "forget set": _items_of("forget"),
    "retain set": _items_of("retain"),
    "never-taught set": _items_of("never_taught"),
    "floor": lambda d: d["verdict"]["floor"].replace("_", "-"),
}
