"""Pages of docs/results and their plots, rendered from the kept results and a template each.

The text of a page is in ``benchmarks/pages/NAME.md.j2``; figures come from
``benchmarks/results/``. ``python -m benchmarks pages`` writes every page again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS / "results"
DOCS = BENCHMARKS.parent / "docs" / "results"
TEMPLATES = BENCHMARKS / "pages"

STATES = {"not_unlearned": 0, "suppressed": 1, "deleted": 2, "damaged": 3}
STATUSES = ("retained", "absent", "no_power", "control_failed")

Record = Mapping[str, Any]
Draw = Callable[[Record, Path], None]


def results(name: str) -> dict[str, Any]:
    """What ``benchmarks/results/NAME.json`` holds."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Page:
    """A page of docs/ with its plots.

    Attributes:
        name: Of the page, and of its template where ``template`` does not say.
        context: Reads the results; gives the variables of the template.
        plots: How each file beside it is drawn from the same variables.
        markers: First and last line of the part that is generated; the text around
            it is written by hand. Empty where all of the page is generated.
        template: Of several pages.
        folder: Of docs/ that holds it.
    """

    name: str
    context: Callable[[], Record]
    plots: Mapping[Path, Draw] = field(default_factory=dict)
    markers: tuple[str, str] | tuple[()] = ()
    template: str = ""
    folder: str = DOCS.name

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return DOCS.parent / self.folder / f"{self.name}.md"

    def write(self, folder: Path | None = None) -> None:
        """Page and plots, in their places or all in ``folder``."""
        context = self.context()
        text = render(self.template or self.name, context)
        if self.markers:
            start, end = self.markers
            head, rest = self.path.read_text(encoding="utf-8").split(start)
            text = head + start + text + end + rest.split(end)[1]
        page = self.path if folder is None else folder / self.path.name
        page.write_text(text, encoding="utf-8")
        for place, draw in self.plots.items():
            draw(context, place if folder is None else folder / place.name)


def render(template: str, context: Record) -> str:
    """The text that a template gives."""
    return _environment().get_template(f"{template}.md.j2").render(context)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update({each.__name__: each for each in FILTERS})
    return environment


def fmt(value: Any, spec: str) -> str:
    """A value by Python's format specification, such as ".3g"."""
    return format(value, spec)


def target(row: Record) -> str:
    """The target of a row, and whether it is met: ">= 3 (met)", or "none"."""
    if row["target"] is None:
        return "none"
    return f"{row['sense']} {row['target']:.5g} ({'met' if met(row) else '**not met**'})"


def met(row: Record) -> bool:
    """Whether a row meets its target."""
    if row["sense"] == ">=":
        return row["value"] >= row["target"]
    return row["value"] <= row["target"]


def machine(facts: Record) -> str:
    """Processor and versions in one line."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value)


def of(rows: Iterable[Record], **fields: Any) -> list[Record]:
    """Rows with these values."""
    wanted = fields.items()
    return [row for row in rows if all(row.get(name) == value for name, value in wanted)]


def having(rows: Iterable[Record], name: str) -> list[Record]:
    """Rows with a value in the field that is not empty."""
    return [row for row in rows if row.get(name)]


def distinct(rows: Iterable[Record], name: str) -> list[Any]:
    """Values of a field, each once, in the order of the rows."""
    return list(dict.fromkeys(row[name] for row in rows))


def groups(rows: Sequence[Record], first: str, second: str = "") -> list[tuple[Any, list]]:
    """Rows by one field or by two, as values and rows; values in the order of the rows."""
    if not second:
        return [(value, of(rows, **{first: value})) for value in distinct(rows, first)]
    found = [
        ((one, two), of(rows, **{first: one, second: two}))
        for one in distinct(rows, first)
        for two in distinct(rows, second)
    ]
    return [(values, group) for values, group in found if group]


def longest(rows: Iterable[Record], name: str) -> list[Any]:
    """Keys of the mapping in this field that has most of them."""
    return list(max((row[name] for row in rows), key=len, default={}))


def at(rows: Iterable[Record], *keys: str) -> list[float | None]:
    """A nested figure of each row, None where there is none."""
    found = []
    for value in rows:
        for key in keys:
            value = None if value is None else value.get(key)
        found.append(None if value is None else float(value))  # pyright: ignore
    return found


def mean_range(values: Iterable[float | None]) -> str:
    """Mean with smallest and largest; a dash where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.2f} [{min(known):.2f}, {max(known):.2f}]"


def span(values: Iterable[float | None]) -> str:
    """Smallest and largest; nothing where there is none."""
    known = [value for value in values if value is not None]
    return f"{min(known):.2f} to {max(known):.2f}" if known else ""


def with_verdict(rows: Iterable[Record], left_out: str, verdict: str = "") -> list[Record]:
    """Models judged without what was left out, those called ``verdict`` where it is given."""
    judged = [row for row in rows if left_out in row["verdicts"]]
    return [row for row in judged if not verdict or row["verdicts"][left_out] == verdict]


def right(rows: Iterable[Record], left_out: str) -> int:
    """How many models are judged right without what was left out."""
    return sum(row["verdicts"][left_out] == row["state"] for row in rows)


def by_state(models: Iterable[Record]) -> list[Record]:
    """Models in the order of their states, those of unknown state last."""
    return sorted(models, key=lambda model: STATES.get(model["state"], len(STATES)))


def axis_statuses(models: Sequence[Record]) -> list[tuple[str, str | None, list[str]]]:
    """What each axis says of the models of each state that it looked into."""
    axes = dict.fromkeys(name for model in models for name in model["axes"])
    found = []
    for axis in axes:
        for state, here in groups(models, "state"):
            statuses = [model["axes"][axis]["status"] for model in here if axis in model["axes"]]
            if statuses:
                found.append((axis, state, statuses))
    return found


FILTERS = (
    *(fmt, target, met, machine, of, having, distinct, groups, longest, at, mean_range, span),
    *(with_verdict, right, by_state, axis_statuses),
)
