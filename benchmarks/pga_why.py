"""The paragraph of docs/pga.md that says why the toy's figures differ."""

import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "pga_reasons.json"

TEXTS = """
### Why rows differ from the paper

What differs was varied one thing at a time (`python -m benchmarks.pga_reasons`).

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
**Deeper**, each variant changes one thing of the table's run; probes are read at every
fit of the readout while the alignment goes on.

| variant | epochs before | epochs aligned | depths 0 to 4 | least probable code |
|---|---|---|---|---|
"""


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
        text += document.get("reading", "")
    return text
