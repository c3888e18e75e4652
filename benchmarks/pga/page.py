"""What docs/results/pga.md shows of the results."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.pages import DOCS, Page, at, of, results
from benchmarks.harness.plots import draw_curve, draw_equivalence, draw_power
from benchmarks.pga.curve import NEVER, RECALL, UTILITY

WORDS = {
    "small": "20 + 20 keys, two layers",
    "forty": "40 + 40 keys, two layers",
    "two_hundred": "200 + 200 keys, two layers",
    "large": "200 + 200 keys, four layers",
}
PAPER = {
    "before": (0.739, 0.883, 1.0, 1.0),
    "pga": (0.55, 0.29, 0.22, 0.19),
    "isotropic": (0.69, 0.68, 0.67, 0.62),
}
"""Accuracies of arXiv 2605.01699 at depths 1 to 4."""
MARGIN = 0.08
EPOCHS = (0, 50, 100, 200, 400)
STATEMENTS = tomllib.loads(Path(__file__).with_name("statements.toml").read_text(encoding="utf-8"))[
    "statement"
]
"""What must not be copied, each with ``text`` and ``tests``."""

Part = dict[str, Any]


def context() -> dict[str, Any]:
    """Variables of the template."""
    document = results("pga")
    parts = document["parts"]
    worlds = of_kind(parts, "curve")
    toys = list(of_kind(parts, "toy").get("published", {}).values())
    return document | {
        "words": WORDS,
        "toys": [toy_model(each, part["rows"]) for part in toys for each in part["models"]],
        "toy_rows": [row for part in toys for row in part["rows"]],
        "reasons": reasons(),
        "claims": of_kind(parts, "claims"),
        "curves": [curve_of(size, seeds) for size, seeds in worlds.items()],
        "curve_rows": [p["rows"] for seeds in worlds.values() for p in seeds.values()],
        "drawn": drawn(worlds),
        "recall": RECALL,
        "utility": UTILITY,
        "made_by": made_by,
        "statements": STATEMENTS,
    }


def of_kind(parts: Mapping[str, Part], kind: str) -> dict[str, dict[int, Part]]:
    """Parts of a kind, by size and seed."""
    found: dict[str, dict[int, Part]] = {}
    for key in sorted(parts):
        words = key.split(":")
        if words[0] == kind and len(words) == 3:
            found.setdefault(words[1], {})[int(words[2])] = parts[key]
    return {size: found[size] for size in (*WORDS, "published") if size in found}


def made_by(part: Part) -> str:
    """Commit, device and processor of a part."""
    machine = part.get("machine", {})
    device = part.get("device", "cpu")
    name = machine.get("cuda") if device == "cuda" else machine.get("cpu")
    return f"`{part['commit']}` on {name or device}, torch {machine.get('torch', '?')}"


def toy_model(model: Part, rows: Sequence[Part]) -> Part:
    """A model of the toy with the figures that the paper has for it."""
    name = model["eraser"] or "baseline"
    theirs = {row["figure"]: row["published"] for row in rows if "published" in row}
    values = [v for figure, v in theirs.items() if figure.startswith(f"{name}, ")]
    bound = "at most " if f"{name}, highest probe left" in theirs else ""
    return model | {"published": bound + " ".join(f"{value:.2f}" for value in values)}


def drawn(worlds: Mapping[str, Any]) -> str:
    """The size whose curve is drawn."""
    return "two_hundred" if "two_hundred" in worlds else next(iter(worlds), "")


def curve_of(size: str, seeds: dict[int, Part]) -> dict[str, Any]:
    """Every eraser at several strengths in worlds of one size, seed beside seed."""
    points = [point for part in seeds.values() for point in part["points"]]
    settings: Any = {p["eraser"]: of(points, eraser=p["eraser"]) for p in points}
    tried = {name: here for name, here in settings.items() if "ratio" in here[0]}
    margin = next(iter(seeds.values()))["margin"]
    never = at(settings.get(NEVER, ()), "reach")
    return {
        "size": size,
        "seeds": list(seeds),
        "tested": points[0]["sequences"] // 2,
        "made": list(dict.fromkeys(map(made_by, seeds.values()))),
        "points": points,
        "settings": settings,
        "margin": margin,
        "never": never,
        "able": sum(reach < margin for reach in never),
        "passed": _often(tried, "passes", len(seeds)),
        "quiet": _often(tried, "quiet", len(seeds)),
        "hides_most": _best(
            tried,
            "reach",
            lambda p: p["recall"] <= RECALL and p["ratio"] <= UTILITY and not p["role_swap"],
        ),
        "costs_least": _best(tried, "ratio", lambda p: p["shown gone"] and p["reading"] == "none"),
        "cut_off": [s for s, part in seeds.items() if not part.get("finished", True)],
    }


def _often(tried: Mapping[str, list[Part]], key: str, worlds: int) -> tuple[list[str], list[str]]:
    """Settings for which ``key`` is true in every world, and in some."""
    times = {name: sum(each[key] for each in here) for name, here in tried.items()}
    return (
        [name for name, n in times.items() if n == worlds],
        [f"{name} ({n})" for name, n in times.items() if 0 < n < worlds],
    )


def _best(
    tried: Mapping[str, list[Part]], key: str, meets: Callable[[Part], bool]
) -> list[Part] | None:
    """Points of the setting with the least ``key`` among those that meet the rest."""
    good = [here for here in tried.values() if all(map(meets, here))]
    return min(good, key=lambda here: max(p[key] for p in here), default=None)


def reasons() -> dict[str, Any]:
    """Why the toy's figures differ from the paper's."""
    document = results("pga_reasons")
    variants = list(document["variants"].values())
    found: dict[str, Any] = {"texts": document["texts"]}
    if not variants:
        return found
    recipes = list(dict.fromkeys(v["recipe"] for v in variants))
    rows, outside, inside, near = [], [], 0, 0
    for when, theirs in PAPER.items():
        rows.append((when, "the paper", [f"{value:.2f}" for value in theirs]))
        within, close = np.zeros((2, len(theirs)), bool)
        for recipe in recipes:
            scores = _scores(of(variants, recipe=recipe), when)
            if not len(scores):
                continue
            cells = [f"{one.mean():.2f} [{one.min():.2f}, {one.max():.2f}]" for one in scores.T]
            rows.append((when, recipe, cells))
            within |= (scores.min(0) <= theirs) & (theirs <= scores.max(0))
            close |= np.abs(scores.mean(0) - theirs) <= MARGIN
        inside, near = inside + within.sum(), near + close.sum()
        outside += [
            f"{when}, depth {depth + 1} ({theirs[depth]:.2f})"
            for depth in np.flatnonzero(~within & ~close)
        ]
    return found | {
        "seeds": sorted({v["seed"] for v in variants}),
        "deeper": rows,
        "course": {name: _course(of(variants, recipe=name, align="pga")) for name in recipes},
        "total": sum(map(len, PAPER.values())),
        "inside": inside,
        "near": near,
        "margin": MARGIN,
        "outside": outside,
        "made": list(dict.fromkeys(made_by(v) for v in variants)),
    }


def _scores(variants: Sequence[Any], when: str) -> np.ndarray:
    """(seed, depth) accuracies at depths 1 and up, before or after an alignment."""
    same = of(variants, align="pga" if when == "before" else when)
    place = 0 if when == "before" else -1
    return np.array([v["curve"][place]["true"][1:] for v in same])


def _course(variants: Sequence[Any]) -> list[list[float]]:
    """Mean accuracies at depths 2 and up, by epoch."""
    found = []
    for epoch in EPOCHS:
        here = [c["true"][2:] for v in variants for c in of(v["curve"], epoch=epoch)]
        found.append(np.mean(here, axis=0).tolist() if here else [])
    return found


def _curve_plot(variables: Mapping[str, Any], path: Path) -> None:
    (curve,) = of(variables["curves"], size=variables["drawn"])
    names = list(curve["settings"])
    draw_curve([p | {"place": names.index(p["eraser"])} for p in curve["points"]], path)


PAGE = Page(
    "pga",
    context,
    {
        DOCS / "pga_curve.svg": _curve_plot,
        DOCS / "pga_equivalence.svg": lambda v, path: draw_equivalence(
            v["parts"]["equivalence"]["curve"], path
        ),
        DOCS / "pga_power.svg": lambda v, path: draw_power(v["parts"]["power"]["curve"], path),
    },
)
