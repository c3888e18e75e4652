"""Plots of docs/results/pga.md."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

NEAR = 1.3


def _saved(figure: Figure, path: Path) -> None:
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = path.stem
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def draw_power(points: list[dict], path: Path) -> None:
    """Power against sequences a class, one line a kind of states."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for case in dict.fromkeys(each["case"] for each in points):
        mine = [each for each in points if each["case"] == case]
        axes.plot(
            [each["n"] for each in mine],
            [each["power"] for each in mine],
            marker="o",
            label=case,
        )
    axes.axhline(0.8, color="#888", linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = sorted({each["n"] for each in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("memorised sequences tested, as many clean")
    axes.set_ylabel("share found at p <= 0.05")
    axes.set_ylim(-0.02, 1.04)
    axes.legend(frameon=False, fontsize=8)
    _saved(figure, path)


def draw_equivalence(points: list[dict], path: Path) -> None:
    """Power of the test of equivalence against sequences, one line a margin."""
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for margin in points[0]["power"]:
        axes.plot(
            [each["n"] for each in points],
            [each["power"][margin] for each in points],
            marker="o",
            label=f"within {margin} of chance",
        )
    axes.axhline(0.8, color="#888", linestyle=":")
    axes.set_xscale("log", base=2)
    ticks = [each["n"] for each in points]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("sequences tested, as many of each class")
    axes.set_ylabel("share shown equivalent to chance")
    axes.set_ylim(-0.02, 1.04)
    axes.legend(frameon=False, fontsize=8)
    _saved(figure, path)


def draw_curve(points: list[dict], path: Path) -> None:
    """The battery's best AUC against perplexity; filled where recall is gone.

    Points carry their ``place`` in the table. What costs little is drawn apart.
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
            if place in named:
                continue
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
        axes.annotate(
            str(place),
            (each["ratio"], each["best"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=7,
        )
    near.axvline(1.05, color="#888", linestyle=":")
    near.set_xlim(0.98, NEAR)
    far.set_xscale("log")
    near.set_xlabel("perplexity of clean texts, times the original's")
    near.set_ylabel("battery's best AUC on keys not seen")
    _saved(figure, path)
