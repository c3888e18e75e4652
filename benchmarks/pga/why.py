"""The paragraph of docs/results/pga.md that says why the toy's figures differ."""

import json
from pathlib import Path

import numpy as np

from benchmarks.harness.pga_worlds_page import where

RESULT = Path(__file__).parents[1] / "results" / "pga_reasons.json"

TEXTS = """
### Why rows differ from the paper

What differs was varied (`python -m benchmarks.pga.recipes`).

**Depth 0 is a matter of the texts.** It knows a text's last sign and its length, and
nothing of training: a network that was never trained scores there as the trained one
does. Over {draws} draws of nine and nine texts:

| network, texts | mean | SD | 95 % of draws |
|---|---|---|---|
"""
AFTER = """
All our texts end in one sign. Where each ends in its own, as the paper's may, its 0.656
before and 0.65 and 0.66 after erasing lie well inside the range; no figure of depth 0
says anything about an eraser.
"""
DEEPER = """
**Deeper** it is the original's training, its seed, and how long the alignment goes on.
Two recipes of the original: batches of 60 at a rate of 1e-3 until every code has
probability 0.99 (the table above), and one step an epoch on all 180 rows at 3e-4, the
paper's rate, for 1,000 epochs or until 0.978, which the paper's reached in as many.
Mean over seeds {seeds}, lowest and highest in brackets; the same texts and settings of
the alignment throughout.

| | original's recipe | depth 1 | depth 2 | depth 3 | depth 4 |
|---|---|---|---|---|---|
"""
COURSE = """
Depths 2 to 4 while PGA goes on, mean over seeds:

| original's recipe | epoch 0 | 50 | 100 | 200 | 400 |
|---|---|---|---|---|---|
"""
READING = """
Of the paper's {total} figures at depths 1 to 4, {inside} lie between the lowest and the
highest of our seeds in one recipe or the other, and {near} within {margin:g} of a mean;
not one seed of theirs is known. {outside}
"How far below chance" is a number of epochs, not a property of what is left in the
model. Made by {made}.
"""
PAPER = {
    "before": (0.739, 0.883, 1.0, 1.0),
    "pga": (0.55, 0.29, 0.22, 0.19),
    "isotropic": (0.69, 0.68, 0.67, 0.62),
}
MARGIN = 0.08
EPOCHS = (0, 50, 100, 200, 400)


def _scores(variants: list[dict], when: str) -> np.ndarray:
    """(seed, depth) accuracies at depths 1 and up, before or after an alignment."""
    mine = [v for v in variants if v["align"] == ("pga" if when == "before" else when)]
    place = 0 if when == "before" else -1
    return np.array([v["curve"][place]["true"][1:] for v in mine])


def _deeper(variants: list[dict]) -> str:
    recipes = list(dict.fromkeys(v["recipe"] for v in variants))
    seeds = sorted({v["seed"] for v in variants})
    text = DEEPER.format(seeds=", ".join(map(str, seeds)))
    inside = near = 0
    outside = []
    for when, theirs in PAPER.items():
        shown = " | ".join(f"{value:.2f}" for value in theirs)
        text += f"| {when} | the paper | {shown} |\n"
        held = [np.zeros(len(theirs), bool) for _ in range(2)]
        for recipe in recipes:
            found = _scores([v for v in variants if v["recipe"] == recipe], when)
            if not len(found):
                continue
            cells = [
                f"{one.mean():.2f} [{one.min():.2f}, {one.max():.2f}]"
                for one in found.T
            ]
            text += f"| {when} | {recipe} | {' | '.join(cells)} |\n"
            held[0] |= (found.min(0) <= theirs) & (theirs <= found.max(0))
            held[1] |= np.abs(found.mean(0) - theirs) <= MARGIN
        inside, near = inside + held[0].sum(), near + held[1].sum()
        outside += [
            f"{when}, depth {depth + 1} ({theirs[depth]:.2f})"
            for depth in np.flatnonzero(~held[0] & ~held[1])
        ]
    text += COURSE
    for recipe in recipes:
        mine = [v for v in variants if (v["recipe"], v["align"]) == (recipe, "pga")]
        cells = []
        for epoch in EPOCHS:
            at = [
                c["true"][2:] for v in mine for c in v["curve"] if c["epoch"] == epoch
            ]
            mean = np.mean(at, axis=0) if at else []
            cells.append(" ".join(f"{value:.2f}" for value in mean))
        text += f"| {recipe} | {' | '.join(cells)} |\n"
    made = dict.fromkeys(where(v) for v in variants)
    return text + READING.format(
        total=sum(map(len, PAPER.values())),
        inside=inside,
        near=near,
        margin=MARGIN,
        outside=f"In neither: {'; '.join(outside)}." if outside else "",
        made="; ".join(made),
    )


def reasons() -> str:
    """The text, from what was measured; empty where nothing was."""
    if not RESULT.exists():
        return ""
    document = json.loads(RESULT.read_text(encoding="utf-8"))
    found = document["texts"]
    text = TEXTS.format(draws=next(iter(found.values()))["draws"])
    for name, each in found.items():
        text += f"| {name} | {each['mean']:.2f} | {each['sd']:.2f} "
        text += f"| {each['low']:.2f} to {each['high']:.2f} |\n"
    text += AFTER
    if document["variants"]:
        text += _deeper(list(document["variants"].values()))
    return text
