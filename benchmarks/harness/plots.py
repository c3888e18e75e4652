"""Plots beside the pages: the same figures give the same file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

NEAR = 1.3


def draw_costs(curves: Mapping[str, Sequence], path: Path) -> None:
    """Seconds over sizes on log axes, one panel a kind of size."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, len(curves))
    for axes, (name, (sizes, seconds)) in zip(panels, curves.items(), strict=True):
        axes.loglog(sizes, seconds, "o-")
        first = seconds[0] / sizes[0]
        axes.loglog(sizes, [first * size for size in sizes], ":", color="grey")
        axes.set_xlabel(name)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    panels[0].set_ylabel("seconds (dotted: linear)")
    _save(figure, path)


def draw_power(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Power against sequences a class, one line a kind of states."""
    lines = {}
    for point in points:
        sizes, powers = lines.setdefault(point["case"], ([], []))
        sizes.append(point["n"])
        powers.append(point["power"])
    _powers(lines, "memorised sequences tested, as many clean", "share found at p <= 0.05", path)


def draw_equivalence(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Power of the test of equivalence against sequences, one line a margin."""
    sizes = [each["n"] for each in points]
    lines = {
        f"within {margin} of chance": (sizes, [each["power"][margin] for each in points])
        for margin in points[0]["power"]
    }
    _powers(
        lines, "sequences tested, as many of each class", "share shown equivalent to chance", path
    )


def _powers(lines: Mapping[str, tuple], x_label: str, y_label: str, path: Path) -> None:
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for label, (sizes, powers) in lines.items():
        axes.plot(sizes, powers, marker="o", label=label)
    axes.axhline(0.8, color="#888", linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = sorted({size for sizes, _ in lines.values() for size in sizes})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(-0.02, 1.04)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def draw_curve(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The battery's best AUC against perplexity; filled where recall is gone.

    Points carry their ``place`` in the table. Expensive settings have a panel of their own.
    """
    figure = Figure(figsize=(7.2, 4.2))
    near, far = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    top = max(each["band"] for each in points)
    named: set[int] = set()
    for axes in (near, far):
        axes.axhspan(0.5, top, color="#dde", alpha=0.4, linewidth=0)
    for each in points:
        place = each["place"]
        if "ratio" not in each:
            for axes in (near, far):
                axes.axhline(each["best"], color="#aaa", linestyle="--", linewidth=1)
            if place not in named:
                named.add(place)
                near.annotate(
                    f"{place}: {each['eraser']}",
                    (1.0, each["best"]),
                    xycoords=("axes fraction", "data"),
                    ha="right",
                    va="bottom",
                    fontsize=7,
                    color="#666",
                )
            continue
        axes = near if each["ratio"] < NEAR else far
        filled = "full" if each["recall"] <= 0.01 else "none"
        axes.plot(each["ratio"], each["best"], "o", color="#356", fillstyle=filled)
        spot = (each["ratio"], each["best"])
        offset = {"xytext": (4, 3), "textcoords": "offset points"}
        axes.annotate(str(place), spot, fontsize=7, **offset)
    near.axvline(1.05, color="#888", linestyle=":")
    near.set_xlim(0.98, NEAR)
    far.set_xscale("log")
    near.set_xlabel("perplexity of clean texts, times the original's")
    near.set_ylabel("battery's best AUC on keys not seen")
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Write an SVG file without a date and with identifiers that depend on its name alone."""
    with matplotlib.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})
