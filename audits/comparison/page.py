"""The page of ``exhume compare``: one row an audit, one residual bar an axis."""

import os
from pathlib import Path
from urllib.parse import quote

from audits.comparison.compare import Comparison
from audits.comparison.csv_text import csv_text
from audits.output.outputs import hold_folder
from audits.report import formatting as write
from audits.report.charts import residual_bar
from audits.report.glossary import FLOORS, IMAGE_FLOORS, STATUSES, VERDICTS
from audits.report.templates import rendering_errors, style_sheet, template
from audits.run.api import Audit
from evidence.errors import InputError
from evidence.results import AxisResult
from evidence.storage.files import write_files_atomic
from evidence.storage.regular_files import as_path, file_kind
from evidence.typed_json import Json

PAGE_FILE, TABLE_FILE = "compare.html", "compare.csv"


def write_page(comparison: Comparison, out: Path | str) -> Path:
    """Write ``compare.html`` and ``compare.csv``.

    Args:
        out: Folder; created if needed.

    Returns:
        The path of the page.

    Raises:
        InputError: ``out`` is no folder, cannot be written, or holds files of these names that
            exhume did not write; or a document cannot be rendered.
    """
    folder = as_path(out, "the output folder")
    if file_kind(folder) not in ("a folder", "nothing there"):
        raise InputError(
            f"{folder} cannot be written into",
            expected="a folder",
            got=file_kind(folder),
            fix="name another folder",
        )
    with rendering_errors("these audits"):
        page, table = render(comparison, folder), csv_text(comparison.to_frame())
    with hold_folder(folder, "compare", (PAGE_FILE, TABLE_FILE), {}):
        write_files_atomic({folder / TABLE_FILE: table, folder / PAGE_FILE: page})
    return folder / PAGE_FILE


def render(comparison: Comparison, folder: Path) -> str:
    """The page as text; deterministic.

    Args:
        folder: Where the page will be, for relative links to reports.
    """
    pairs = zip(comparison.names, comparison.audits, strict=True)
    return template("compare.html.j2").render(
        css=style_sheet(),
        axes=[(name, _question(comparison, name)) for name in comparison.axes],
        rows=[_row(name, audit, comparison.axes, folder) for name, audit in pairs],
        differences=comparison.differences,
        exact_match_label="images predicted as the class"
        if all(audit.document["modality"] == "images" for audit in comparison.audits)
        else "answers given",
        same=_same(comparison),
    )


def _question(comparison: Comparison, name: str) -> str:
    return next(audit.axes[name].question for audit in comparison.audits if name in audit.axes)


def _same(comparison: Comparison) -> list[tuple[str, str]]:
    """Inputs shared by all audits, read from the first."""
    document = comparison.audits[0].document
    models = {model["role"]: model for model in document["manifest"]["models"]}
    config = document["config"]
    rule = config.get("rule", {})
    floors = IMAGE_FLOORS if document["modality"] == "images" else FLOORS
    return [
        ("Original", write.last_part(models.get("original", {}).get("source", "?"))),
        ("Floor", floors[document["verdict"]["floor"]]),
        ("Profile", f"{config.get('profile')}, seed {config.get('seed')}"),
        ("Margin", write.small(rule.get("margin"))),
    ]


def _row(name: str, audit: Audit, axes: tuple[str, ...], folder: Path) -> dict[str, Json]:
    document = audit.document
    verdict, behaviour = document["verdict"], document["behaviour"]
    word, symbol, _ = VERDICTS[verdict["class"]]
    probability = (verdict["probabilities"] or {}).get(verdict["class"])
    results = audit.axes
    margin = document["config"].get("rule", {}).get("margin") or 0.0
    retain_accuracy = behaviour["utility"].get("retain accuracy")
    values = [behaviour[f"forget_{source}"] for source in ("original", "unlearned", "floor")]
    return {
        "name": name,
        "link": _link(audit.report, folder),
        "class": verdict["class"],
        "word": word,
        "symbol": symbol,
        "chance": None if probability is None else write.percent(probability),
        "outside": bool(verdict["calibration"]["outside"]),
        "reason": verdict["reasons"][0] if verdict["reasons"] else "",
        "given": None if None in values else [write.percent(value) for value in values],
        "kept": None if retain_accuracy is None else write.percent(retain_accuracy),
        "cells": [_cell(results.get(axis), margin) for axis in axes],
    }


def _cell(axis: AxisResult | None, margin: float) -> dict[str, Json] | None:
    """One axis of one audit: status, and residual bar of the first reading."""
    if axis is None:
        return None
    symbol, words, _ = STATUSES[axis.status]
    cell: dict[str, Json] = {"status": axis.status, "symbol": symbol, "words": words}
    main = axis.main_reading
    if main is None:
        return cell | {"bar": None}
    low, high = main.residual_interval
    return cell | {
        "bar": residual_bar(main.residual, main.residual_interval, margin),
        "residual": write.plain(main.residual),
        "interval": f"[{write.plain(low)}, {write.plain(high)}]",
    }


def _link(report: Path, folder: Path) -> str | None:
    """Relative link from the page to a report, or None where there is none."""
    if not report.is_file():
        return None
    try:
        relative = os.path.relpath(report.resolve(), folder.resolve())
    except ValueError:  # Another drive.
        return None
    return quote(os.fsencode(Path(relative).as_posix()))
