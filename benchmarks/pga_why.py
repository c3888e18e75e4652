"""The paragraph of docs/pga.md that says why the toy's figures differ."""

import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "pga_reasons.json"

TEXTS = """
### Why rows differ from the paper

What differs was varied (`python -m benchmarks.pga_reasons`).

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
VARIANTS = """
**Deeper** it is the original's training; probes are read at every fit of the readout
while the alignment goes on.

| variant | epochs before | epochs aligned | depths 0 to 4 | least probable code |
|---|---|---|---|---|
"""


RECIPE = """
**The original's recipe.** Our table's original is trained in batches of 60 at 1e-3. In
one step an epoch on all 180 rows at 3e-4, the paper's rate, it ends its 1,000 epochs at
a least probability of {least:.3f}; the paper's reached 0.978 in as many, so this is
very likely what was done there. With rate and batch changed together, same texts and
same alignment, PGA leaves depths 2 to 4 at {after}, against 0.29 0.22 0.19:
{near}. The recipe also moves depth 1 before erasing, to {one:.2f} (batches
of 60: 0.79; the paper 0.74), so what is read there is an accident of training. Depth 2
before erasing is then at {two:.2f} against 0.883.

**How long the alignment goes on** matters as much: the same run passes one half at
about epoch 200 and sinks further to the last. "How far below chance" is a number of
epochs, not a property of what is left in the model.

Not tested: the paper's texts (depths 1 and 2 before erasing), other seeds, and the
isotropic baseline from that original.
"""
NAMED = "one step an epoch, rate 3e-4, stopped at 0.978"
PAPER = (0.29, 0.22, 0.19)


def _recipe(found: dict) -> str:
    start, end = found["curve"][0], found["curve"][-1]
    far = [abs(a - b) for a, b in zip(end["true"][2:], PAPER, strict=True)]
    inside = sum(each <= 0.08 for each in far)
    return RECIPE.format(
        least=start["least"],
        after=" ".join(f"{value:.2f}" for value in end["true"][2:]),
        near=f"{inside} of 3 within 0.08",
        one=start["true"][1],
        two=start["true"][2],
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
        text += VARIANTS
        for name, each in document["variants"].items():
            for point in each["curve"]:
                if point["epoch"] not in (0, 50, 100, 200, 400):
                    continue
                true = " ".join(f"{value:.2f}" for value in point["true"])
                text += f"| {name} | {each['epochs_of_the_original']} "
                text += f"| {point['epoch']} | {true} | {point['least']:.1e} |\n"
        if NAMED in document["variants"]:
            text += _recipe(document["variants"][NAMED])
    return text
