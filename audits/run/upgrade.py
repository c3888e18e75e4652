"""Read ``audit.json`` of schema 1.1 as schema 2.0.

Schema 2.0 gives controls and metrics ids, names the modality, calls the persistence axis
``quantization``, uses the literature's terms for scores, and no longer repeats the first reading
of an axis. Every change is a row of ``upgrade_1_1.toml``; figures are copied.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from audits.core.registry import AXES
from evidence.errors import InputError
from evidence.typed_json import Json, from_json

OLD_VERSION = "1.1"
SECOND_FLOOR = ", against never-taught items"
REPEATED = (
    "statistic",
    "interval",
    "p_value",
    "floor",
    "ceiling",
    "residual",
    "residual_interval",
    "per_layer",
)
"""Numbers of the first reading, which 1.1 repeated in the axis."""
SENTENCES = ("reasons", "claims_allowed", "claims_disallowed", "would_change_it", "also")


@dataclass(frozen=True)
class _Reading:
    """Metric and names of a reading; ``share`` is None where the axis' statistic decides."""

    metric: str
    name: str
    unit: str = ""
    share: bool | None = None


@dataclass(frozen=True)
class _Control:
    id: str
    name: str
    kind: str = "share"
    on_failure: str = "silence"


@dataclass(frozen=True)
class _Fragment:
    old: str
    new: str


@dataclass(frozen=True)
class _Tables:
    """The tables of ``upgrade_1_1.toml``; its comments say what they are."""

    axes: dict[str, str]
    settings: dict[str, str]
    readings: dict[str, dict[str, dict[str, _Reading]]]
    controls: dict[str, _Control]
    on_failure: dict[str, dict[str, str]]
    details: dict[str, dict[str, str]]
    sentences: dict[str, str]
    fragments: tuple[_Fragment, ...]


@cache
def _tables() -> _Tables:
    text = files("audits.run").joinpath("upgrade_1_1.toml").read_text(encoding="utf-8")
    return from_json(_Tables, tomllib.loads(text))


def upgrade(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of schema 1.1 as one of 2.0; one of 2.0 as it is.

    Raises:
        InputError: it holds a reading or control that no 1.1 audit had.
    """
    if document.get("schema_version") != OLD_VERSION:
        return dict(document)
    items = document["manifest"]["items"]
    modality = "images" if any(each["format"] == "images" for each in items) else "text"
    axes = [_axis(axis, modality) for axis in document["axes"]]
    verdict, preflight = dict(document["verdict"]), dict(document["preflight"])
    keys = _hypothesis_keys(document["axes"], modality)
    for name in SENTENCES:
        verdict[name] = [_sentence(_with_keys(text, keys)) for text in verdict[name]]
    verdict["rule"] = _sentence(verdict["rule"])
    verdict["adjusted_p"] = {keys[key]: p for key, p in verdict["adjusted_p"].items()}
    calibration = verdict["calibration"]
    verdict["calibration"] = calibration | {
        "outside": [_sentence(text) for text in calibration["outside"]]
    }
    preflight["warnings"] = _in_order([_sentence(text) for text in preflight["warnings"]])
    return dict(document) | {
        "schema_version": "2.0",
        "modality": modality,
        "verdict": verdict,
        "axes": axes,
        "preflight": preflight,
        "config": _settings(document["config"]),
    }


def _axis_name(name: str) -> str:
    return _tables().axes.get(name, name)


def _axis(axis: Mapping[str, Any], modality: str) -> Mapping[str, Json]:
    name = _axis_name(axis["name"])
    kept = {key: value for key, value in axis.items() if key not in REPEATED}
    return kept | {
        "name": name,
        "question": _sentence(axis["question"]),
        "statistic_name": _sentence(axis["statistic_name"]),
        "readings": [_reading(each, axis, name, modality) for each in axis["readings"]],
        "controls": [_control(each, name) for each in axis["controls"]],
        "details": _renamed(axis["details"], _tables().details.get(name, {})),
        "notes": [_sentence(text) for text in axis["notes"]],
    }


def _metric(name: str, axis: str, modality: str) -> _Reading:
    known = _tables().readings[modality].get(axis, {})
    row = known.get(name.removesuffix(SECOND_FLOOR))
    if row is None:
        raise InputError(
            f"audit.json has a reading that no audit of schema {OLD_VERSION} made",
            expected=", ".join(known) or f"no readings of {axis}",
            got=name,
        )
    return row


def _reading(
    reading: Mapping[str, Any], axis: Mapping[str, Any], name: str, modality: str
) -> Mapping[str, Json]:
    row = _metric(reading["name"], name, modality)
    secondary = reading["name"].endswith(SECOND_FLOOR)
    return dict(reading) | {
        "metric": row.metric,
        "name": row.name + SECOND_FLOOR * secondary,
        "unit": row.unit,
        "is_share": axis["statistic_name"] == "accuracy" if row.share is None else row.share,
        "primary": not secondary,
    }


def _control(control: Mapping[str, Any], axis: str) -> Mapping[str, Json]:
    row = _tables().controls.get(control["name"])
    if row is None:
        raise InputError(
            f"audit.json has a control that no audit of schema {OLD_VERSION} made",
            got=control["name"],
        )
    effects = _tables().on_failure.get(axis, {})
    kept = {key: value for key, value in control.items() if key != "required"}
    return kept | {
        "id": row.id,
        "name": row.name,
        "expected": _sentence(control["expected"]),
        "kind": row.kind,
        "on_failure": effects.get(row.id, row.on_failure) if control["required"] else "inform",
    }


def _hypothesis_keys(axes: list[Mapping[str, Any]], modality: str) -> dict[str, str]:
    """Names of the verdict's hypotheses: "axis: reading" to "axis.metric"."""
    keys = {}
    for axis in axes:
        name = _axis_name(axis["name"])
        for reading in axis["readings"]:
            if not reading["name"].endswith(SECOND_FLOOR):
                metric = _metric(reading["name"], name, modality).metric
                keys[f"{axis['name']}: {reading['name']}"] = f"{name}.{metric}"
    return keys


def _with_keys(text: str, keys: Mapping[str, str]) -> str:
    """The sentence that lists recoveries, with their new names."""
    if not text.startswith("recovered by "):
        return text
    for old in sorted(keys, key=len, reverse=True):
        text = text.replace(old, keys[old])
    return text


@cache
def _replacements() -> tuple[tuple[str, str], ...]:
    """Parts of sentences and what replaces them, names of readings and controls among them."""
    tables = _tables()
    pairs = [(row.old, row.new) for row in tables.fragments]
    names = {name: row.name for name, row in tables.controls.items()}
    for by_axis in tables.readings.values():
        for rows in by_axis.values():
            names |= {name: row.name for name, row in rows.items()}
    changed = [(old, new) for old, new in names.items() if old != new]
    # The longest first: one name may be part of another.
    return (*pairs, *sorted(changed, key=lambda pair: -len(pair[0])))


def _sentence(text: str) -> str:
    whole = _tables().sentences.get(text)
    if whole is not None:
        return whole
    for old, new in _replacements():
        if old in text:
            text = text.replace(old, new)
    return text


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    return value


def _settings(config: Mapping[str, Any]) -> Mapping[str, Json]:
    renamed = _renamed(config, _tables().settings)
    rule = renamed["rule"]
    return renamed | {
        "axes": [_axis_name(name) for name in renamed["axes"]],
        "rule": rule
        | {"required_for_deleted": [_axis_name(name) for name in rule["required_for_deleted"]]},
    }


def _in_order(warnings: list[str]) -> list[str]:
    """Axes that were left out come first, in the order in which axes run."""
    order = {name: place for place, name in enumerate(AXES)}

    def place(text: str) -> int:
        name, _, rest = text.partition(": ")
        return order.get(name, len(order)) if rest.startswith("not run on ") else len(order)

    return sorted(warnings, key=place)
