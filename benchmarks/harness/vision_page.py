"""docs/results/vision.md, from the results of ``benchmarks.suites.vision.suite``."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RESULT = Path(__file__).parents[1] / "results" / "vision.json"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "vision.md"

HEAD = """# Restoring a forgotten class

Generated from `benchmarks/results/vision.json` by `make bench-vision`; edits are lost.

Small vision transformers and CNNs learned scikit-learn's handwritten digits; one class
is then forgotten. The state of the upper rows is known by construction, that of the
published methods below is not. *Published* is the restoration test of arXiv 2602.18505:
the original's states of the same image, carried into the candidate where the true label
says so; the largest of alpha 1, 5 and 10. Its missing controls stand beside it. *Rate*
is ours: one fixed change for all images, fitted and chosen on half of the images of the
class and counted on the other half, then the other way round. At most two points fewer
of the other classes' images may be named for it, and at most two points more of
never-taught images be called the class. *Net* takes off the worst control, and each of
them searches as freely: random directions, directions of another class, three
never-taught classes (halves of two digits, as many images as the forgotten class has,
each searched for under the forgotten class's number; their mean) and models retrained
without the class. *Residual* is the same as a share of what the worst control leaves:
0 is no more than that control, 1 is all that the original names. Unit: the image, so an
interval says nothing of how another class or another retrain would have come out.
Figures are means over models, with the smallest and largest in brackets.

What a first rule got wrong, and what was changed for it on tuning seeds alone (mainly 0
and 1), before the models below were made:

- Networks that never saw the class could be steered to it, by a rate up to .84 (seeds
  10 to 12). What carried it was the slope of the class's log-probability: it lifts the
  class's output until whatever looks unfamiliar is called the class, never-taught
  images as well. Hence the second limit.
- No route undid a relabelled last block. Now the original's last block and classifier
  may stand in place of the candidate's. Nothing is added beside them, as in the text
  twin of that route: end and direction both the original's brought a retrain from the
  original's starting weights to name 82 % of a class it never saw (CNN, seed 1); the
  end alone 18 %, and at most 2 % in the eight other such retrains of seeds 0 to 4
  whose other classes that end could read.
- The original's mean of the class, and what the class lost in the mean, are not added
  any more: they brought that same retrain to 42 %. The original may read what the
  candidate's states hold; it puts nothing into them. Now that retrain is steered to
  26 % by its own slope, and the other three that were tried on seed 1 to 5 % or less.

Every suppression of this world is an edit of the last block or of what follows it, and
so lies in the part that the original's end replaces: its rate under that route is the
original's own, by construction. What is measured is that retrains do not pass by it,
nor by any other. *Own end* is the rate of the other routes alone. An edit further down
the original's end would not undo, and of those nothing is known by construction here.
Seeds 13 and 14 were measured a second time to add that column, and all three once more,
made anew on another machine, with the published test and the published methods: nothing
of ours moved. *Verdict* is that of the whole audit with references, further down, where
one was made.

What the published methods leave is not known. EU-k learns the last layers anew, which
the original's end replaces: its rate is the original's own, by construction as above.

A random direction restores much of a suppression at times (up to .8) and little of a
retrain (at most .07): where the class is there, any change that undoes the edit lets it
out. Never-taught classes, too, are steered more easily to a class whose output is
alive. Taking either off understates a suppression, so that a net rate can be low where
everything was restored; the residual shows that.

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
    whole = document.get("audits", {"models": []})["models"]
    said = {e["model"]: e["verdict"] for e in whole if e["floor"] == "reference"}
    lines = [HEAD, _run(document, "##", said)]
    if "earlier" in document:
        lines += [EARLIER, _run(document["earlier"], "###", said)]
    if "audits" in document:
        lines.append(_audits(document["audits"]))
    page.write_text("".join(lines), encoding="utf-8")


def _run(document: dict, level: str, said: dict[str, str]) -> str:
    """Figures and tables of one run, under headings of one level.

    Args:
        document: With rows, the first of which has the models.
        level: Of the headings.
        said: Verdict of the whole audit with references, by model.
    """
    models = document["rows"][0]["models"]
    lines = [
        f"Command: `{document['command']}`; commit {document['commit'][:7]}; "
        f"{len(models)} models.\n",
        f"\n{level} Figures\n\n| figure | value | target | n |\n|---|---|---|---|\n",
    ]
    for row in document["rows"]:
        target = "" if row["target"] is None else f"{row['sense']} {row['target']:.2f}"
        value = "-" if row["value"] is None else f"{row['value']:.3f}"
        lines.append(f"| {row['figure']} | {value} | {target} | {row['n']} |\n")
    for title, mine in (
        ("Known states", [m for m in models if m["state"]]),
        ("Published methods", [m for m in models if not m["state"]]),
    ):
        if mine:
            lines.append(f"\n{level} {title}\n\n" + _table(mine, said))
    return "".join([*lines, _controls(models, level)])


def _kinds(models: list[dict]) -> list[str]:
    return list(dict.fromkeys(model["kind"] for model in models))


def _table(models: list[dict], said: dict[str, str]) -> str:
    names = (
        *("kind", "state", "shape", "names class", "names rest", "published", "rate"),
        *("own end", "net", "net, no reference", "residual", "restoration says"),
        "verdict",
    )
    lines = ["| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|\n"]
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
                mean_range([of(m, "with_reference", "own_rate") for m in mine]),
                mean_range([of(m, "with_reference", "net") for m in mine]),
                mean_range([of(m, "without_reference", "net") for m in mine]),
                mean_range([of(m, "with_reference", "residual") for m in mine]),
                ", ".join(m["called"] for m in mine),
                ", ".join(said[m["name"]] for m in mine if m["name"] in said) or "-",
            ]
            lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def _controls(models: list[dict], level: str) -> str:
    """The published test's arms, where it was made, and our controls."""
    text = ""
    if any(m["published"] for m in models):
        arms = (
            *("published", "cls", "latents", "random", "other_class", "other_images"),
            "never_trained",
        )
        text += (
            f"\n{level} Controls of the published test\n\nBest alpha of each arm. "
            "*Never trained* is the same injection into random weights.\n\n"
        ) + _by_state(models, arms, ("published", "best"))
    names = ("random", "others", "never_taught", "reference-1", "reference-2")
    return (
        f"{text}\n{level} Controls of ours\n\nRates under the change chosen for each "
        "model.\n\n"
    ) + _by_state(models, names, ("with_reference", "controls"))


def _by_state(models: list[dict], names: Sequence[str], where: Sequence[str]) -> str:
    """Means of some nested figures, a row a state and shape."""
    rows = ["| state | shape | " + " | ".join(names) + " |\n"]
    rows.append("|---|---|" + "---|" * len(names) + "\n")
    families = list(dict.fromkeys(m["family"] for m in models))
    for state in dict.fromkeys(m["state"] or "graded" for m in models):
        for family in families:
            mine = [
                m
                for m in models
                if (m["state"] or "graded", m["family"]) == (state, family)
            ]
            cells = [mean_range([of(m, *where, name) for m in mine]) for name in names]
            rows.append(f"| {state} | {family} | " + " | ".join(cells) + " |\n")
    return "".join(rows)


EARLIER = """
## Seeds 10 to 12, under the rule before

The published test does not depend on our rule; these are its figures, and those of the
published methods. Our own columns are those of the first rule, and these seeds were
spent on it: one limit, five routes, controls under the candidate's own choice.

"""

AUDITS = """
## Whole audits

`exhume audit` of the same models, from their test images: behaviour, the original's own
probe and a refitted one, causal depth and relearning, decided by the rule that texts
have (`audits/verdict/rule.py`). The unit is the image. Floors: the two retrains from other
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
of seed 12 with references, what there was time for of 13, and all of seed 14 but the
published methods without a reference; each audited once. In a network of two
blocks no site before the last block is read; causal depth then does not see the planted
suppression and has no say.

Without a reference nothing is called deleted: how easily a class that no model saw is
read and learned is a matter of the class, and never-taught images do not say it.

With references no retrain was called deleted either. In all eight of seed 12 it is
relearning that stands in the way. Four images of an unseen class teach these networks
most of the rest: the floor is .82 to .87 of it in CNNs and .66 to .75 in transformers,
so that the room up to the original is small (.13 to .34), and a 90 % interval over 43
or 44 images is .16 to .46 of that room to either side, where the margin is .3. In four
of the eight, 1.6 to 3.8 times as many images would settle it (70 to 165; a quarter of
scikit-learn's digits is 45 a class). In the other four images are not what is missing:
one would need more than ten times as many, one has no room at all, two relearn better
than their references by .26 and .38 of the room. Retrains differ from each other by
that much, and one or two references do not say how far. The other requirement, a
refitted probe, was equivalent to its floor in four, stood in the way in three, and had
no say in one. In all eight of seed 14 relearning stands in the way again, and a
refitted probe in two of them: in four the interval reaches beyond the margin above, in
four below alone, which is no sign of knowledge but no equivalence either.

Of the 14 published methods on seed 14 eleven are called suppressed in CNNs and five in
transformers, where six stay inconclusive, each for a residual trace: a refitted probe
reads the class and the original's own does not. None is called deleted. Their state is
not known by construction; the table above has each one's verdict.
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
