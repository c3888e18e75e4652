"""Plots of docs/pga.md."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


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


def draw_curve(points: list[dict], path: Path) -> None:
    """The battery's best AUC against perplexity; filled where recall is gone."""
    figure = Figure(figsize=(6.4, 4.2))
    axes = figure.subplots()
    for each in points:
        if "ratio" not in each:
            style = "-" if each["eraser"] == "original" else "--"
            axes.axhline(each["best"], color="#aaa", linestyle=style, linewidth=1)
            axes.annotate(each["eraser"], (1.0, each["best"]), fontsize=7, color="#666")
            continue
        gone = each["recall"] <= 0.01
        axes.plot(
            each["ratio"],
            each["best"],
            "o",
            color="#356",
            fillstyle="full" if gone else "none",
        )
        axes.annotate(
            each["eraser"],
            (each["ratio"], each["best"]),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=6,
        )
    bands = [each["band"] for each in points]
    axes.axhspan(0.5, max(bands), color="#dde", alpha=0.4, linewidth=0)
    axes.axvline(1.05, color="#888", linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("perplexity of clean texts, times the original's")
    axes.set_ylabel("battery's best AUC on keys not seen")
    _saved(figure, path)
