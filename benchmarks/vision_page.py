"""docs/vision.md, from the results of ``benchmarks.vision``."""

import json
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parent / "results" / "vision.json"
PAGE = Path(__file__).parents[1] / "docs" / "vision.md"

HEAD = """# Restoring a forgotten class

Generated from `benchmarks/results/vision.json` by `make bench-vision`; edits are lost.

Small vision transformers and CNNs learned scikit-learn's handwritten digits; one class
is then forgotten. The state of the upper rows is known by construction, that of the
published methods below is not. *Published* is the restoration test of arXiv 2602.18505:
the original's states of the same image, carried into the candidate where the true label
says so; the largest of alpha 1, 5 and 10. Its missing controls stand beside it. *Rate*
is ours: one fixed change for all images, fitted and chosen on other images, at a cost
of at most two points on the other classes; *net* takes off the worst control (a random
change as large, changes made for other classes, never-taught image classes, and models
retrained without the class, steered by changes of their own). Unit: the image. Figures
are means over models, with the smallest and largest in brackets.

Routes, strengths and recipes were looked at on tuning seed 0 alone; the models below
are of held-out seeds (`testbeds/digits_split.json`). Where an edit lies after the
published test's site, as in every suppression here, the candidate's states at the site
are the original's: nothing is carried over, and the published rate is 0 by
construction, however much was kept.
"""


def mean_range(values: list[float | None]) -> str:
    """Mean with smallest and largest; a dash where there is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.2f} [{min(known):.2f}, {max(known):.2f}]"


def of(found: dict, *keys: str) -> float | None:
    """A nested figure, or None where there is none."""
    value = found
    for key in keys:
        if value is None:
            return None
        value = value.get(key)
    return value if value is None else float(value)


def write_page(document: dict, page: Path = PAGE) -> None:
    """Write the page anew."""
    models = document["rows"][0]["models"]
    lines = [HEAD]
    lines.append(
        f"Command: `{document['command']}`; commit {document['commit'][:7]}; "
        f"{len(models)} models.\n"
    )
    lines.append("\n## Figures\n\n| figure | value | target | n |\n|---|---|---|---|\n")
    for row in document["rows"]:
        target = "" if row["target"] is None else f"{row['sense']} {row['target']:.2f}"
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        lines.append(f"| {row['figure']} | {value} | {target} | {row['n']} |\n")
    lines.append(_table("Known states", [m for m in models if m["state"]]))
    lines.append(_table("Published methods", [m for m in models if not m["state"]]))
    lines.append(_controls(models))
    if "audits" in document:
        lines.append(_audits(document["audits"]))
    page.write_text("".join(lines), encoding="utf-8")


def _kinds(models: list[dict]) -> list[str]:
    return list(dict.fromkeys(model["kind"] for model in models))


def _table(title: str, models: list[dict]) -> str:
    lines = [
        f"\n## {title}\n\n",
        "| kind | state | shape | names class | names rest | published | rate | net | "
        "net, no reference | restoration says |\n|---|---|---|---|---|---|---|---|---|"
        "---|\n",
    ]
    order = {
        s: n
        for n, s in enumerate(("not_unlearned", "suppressed", "deleted", "damaged"))
    }
    for kind in sorted(
        _kinds(models),
        key=lambda k: order.get(next(m["state"] for m in models if m["kind"] == k), 9),
    ):
        for family in dict.fromkeys(m["family"] for m in models):
            mine = [m for m in models if (m["kind"], m["family"]) == (kind, family)]
            if not mine:
                continue
            cells = [
                kind,
                mine[0]["state"] or "graded",
                family,
                mean_range([of(m, "measured", "said") for m in mine]),
                mean_range([of(m, "measured", "kept") for m in mine]),
                mean_range([of(m, "published", "best", "published") for m in mine]),
                mean_range([of(m, "with_reference", "rate") for m in mine]),
                mean_range([of(m, "with_reference", "net") for m in mine]),
                mean_range([of(m, "without_reference", "net") for m in mine]),
                ", ".join(m["called"] for m in mine),
            ]
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _controls(models: list[dict]) -> str:
    """The published test's arms, and our controls, by state and shape."""
    arms = (
        *("published", "cls", "latents", "random", "other_class", "other_images"),
        "never_trained",
    )
    lines = [
        "\n## Controls of the published test\n\nBest alpha of each arm. "
        "*Never trained* is the same injection into random weights.\n\n"
        "| state | shape | "
        + " | ".join(arms)
        + " |\n|---|---|"
        + "---|" * len(arms)
        + "\n"
    ]
    states = list(dict.fromkeys(m["state"] or "graded" for m in models))
    families = list(dict.fromkeys(m["family"] for m in models))
    for state in states:
        for family in families:
            mine = [
                m
                for m in models
                if (m["state"] or "graded", m["family"]) == (state, family)
            ]
            cells = [
                mean_range([of(m, "published", "best", arm) for m in mine])
                for arm in arms
            ]
            lines.append(f"| {state} | {family} | " + " | ".join(cells) + " |\n")
    names = ("random", "others", "never_taught", "reference-1", "reference-2")
    lines.append(
        "\n## Controls of ours\n\nRates under the change chosen for each model.\n\n"
        "| state | shape | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names)
    )
    lines.append("\n")
    for state in states:
        for family in families:
            mine = [
                m
                for m in models
                if (m["state"] or "graded", m["family"]) == (state, family)
            ]
            cells = [
                mean_range([of(m, "with_reference", "controls", name) for m in mine])
                for name in names
            ]
            lines.append(f"| {state} | {family} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


AUDITS = """
## Whole audits

`exhume audit` of the same models, from their test images: behaviour, the original's own
probe and a refitted one, causal depth and relearning, decided by the rule that texts
have (`audits/verdict.py`). The unit is the image. Floors: the two retrains from other
starting weights (each has the other one), or never-taught images.

What differs from texts was chosen on tuning seed 0: only blocks from the middle on are
read; the original's probe has to find the class at least halfway beyond its floor, at
sites where its probes of other classes read those; a refitted probe is made from one
image; equivalence to the floor is asked of the refitted probe, not of the original's.
That was not enough. On held-out seeds 10 and 11, with references, seven of 16 retrains
were called suppressed: five relearned better than their references, which differ from
each other by more than an interval over images says, and the states of two with the
original's starting weights brought the original to name 53 % and 58 % of the class.
Since then relearning may block `deleted` but makes nothing `suppressed`, and carried
states have to go halfway too. So seeds 10 and 11 are no held-out seeds any more, and a
retrain from the original's own starting weights remains the hardest case: another one
might go further than halfway. What is below was made under the rule as it is now: all
of seed 12 with references, and what there was time for of the rest. In a network of two
blocks no site before the last block is read; causal depth then does not see the planted
suppression and has no say.

Without a reference nothing is called deleted: how easily a class that no model saw is
read and learned is a matter of the class, and never-taught images do not say it.
"""
VERDICTS = ("not_unlearned", "suppressed", "deleted", "damaged", "inconclusive")


def _audits(found: dict) -> str:
    """Error rates, and one table of verdicts by kind and shape for each floor."""
    lines = [AUDITS, f"\nCommand: `{found['command']}`; commits "]
    lines.append(", ".join(each[:7] for each in found["commits"]) + ".\n\n")
    lines.append("| figure | value | target | n |\n|---|---|---|---|\n")
    for row in found["rows"]:
        target = "" if row["target"] is None else f"{row['sense']} {row['target']:.2f}"
        lines.append(
            f"| {row['figure']} | {row['value']:.3f} | {target} | {row['n']} |\n"
        )
    for floor in dict.fromkeys(each["floor"] for each in found["models"]):
        here = [each for each in found["models"] if each["floor"] == floor]
        seeds = sorted({each["seed"] for each in here})
        lines.append(
            f"\n### Floor: {floor.replace('_', '-')}, seeds "
            + ", ".join(map(str, seeds))
            + "\n\n| kind | state | shape | "
            + " | ".join(VERDICTS)
            + " |\n"
            + "|---" * 8
            + "|\n"
        )
        for kind in _kinds(here):
            for family in dict.fromkeys(each["family"] for each in here):
                mine = [e for e in here if (e["kind"], e["family"]) == (kind, family)]
                if not mine:
                    continue
                said = [each["verdict"] for each in mine]
                counts = [str(said.count(name) or "") for name in VERDICTS]
                cells = [kind, mine[0]["state"] or "graded", family, *counts]
                lines.append("| " + " | ".join(cells) + " |\n")
        lines.append(_statuses(here))
    return "".join(lines)


def _statuses(models: list[dict]) -> str:
    """What each axis says of models it looked into, by state."""
    order = ("retained", "absent", "no_power", "control_failed")
    text = "\n| axis | state | " + " | ".join(order) + " |\n" + "|---" * 6 + "|\n"
    names = dict.fromkeys(name for each in models for name in each["axes"])
    for name in names:
        for state in dict.fromkeys(each["state"] for each in models):
            said = [
                each["axes"][name]["status"]
                for each in models
                if each["state"] == state and name in each["axes"]
            ]
            if said:
                counts = [str(said.count(status) or "") for status in order]
                text += f"| {name} | {state} | " + " | ".join(counts) + " |\n"
    return text


if __name__ == "__main__":
    write_page(json.loads(RESULT.read_text(encoding="utf-8")))
