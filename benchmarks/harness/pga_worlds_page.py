"""The parts of docs/results/pga.md that come from worlds of codes, seed beside seed."""

from pathlib import Path

from benchmarks.harness.plots import draw_curve
from benchmarks.pga.curve import NEVER, RECALL, UTILITY

WORDS = {
    "small": "20 + 20 keys, two layers",
    "forty": "40 + 40 keys, two layers",
    "two_hundred": "200 + 200 keys, two layers",
    "large": "200 + 200 keys, four layers",
}
CLAIMS = """
| claim | published | sound | outcome |
|---|---|---|---|
"""
CLAIMING = """
`exhume pga --size {size}`: {words}; {share:.0%} of them erased with, the others
tested. "Removes the signature" survives where every reader that found it in the
original is equivalent to chance: two one-sided tests of |AUC - 0.5| < {margin:g}, all
of which must pass. What is not found is never called absent.
"""
CURVES = """
## How close an eraser comes

Every eraser sees a part of the keys; recall is the mean probability of the codes it
saw, perplexity that of clean texts over the original's, and the battery (seven
families, two views, every depth) is tried on the other keys. To pass, recall is at most
{recall:g}, perplexity within {utility:g} times, no clean code is learned instead,
nothing is found, and what found the signature in the original is equivalent to chance
within {margin:g}. *Reach* is how far from 0.5 those readers' 90 % intervals go. The
network that was never taught a code shows what this many sequences can show at all.
Quadratic erasure is not tried: it must be told of each row whether it was memorised.
Figures of several seeds stand side by side. The strengths were settled on forty keys
and seed 0; every other world is a test.

![Perplexity against the battery's best AUC](pga_curve.svg)

The plot is of {plotted}, its numbers those of the table.
"""
TABLE = """
### {words}; {tested} tested, seed{plural} {seeds}

{made}

| | eraser | best AUC | null's 95 % | reach | recall | perplexity | passes |
|---|---|---|---|---|---|---|---|
"""


def named(parts: dict, kind: str) -> dict[str, dict[int, dict]]:
    """Parts of a kind, by size and seed."""
    found: dict[str, dict[int, dict]] = {}
    for key in sorted(parts):
        words = key.split(":")
        if words[0] == kind and len(words) == 3:
            found.setdefault(words[1], {})[int(words[2])] = parts[key]
    return {size: found[size] for size in (*WORDS, "published") if size in found}


def where(part: dict) -> str:
    """Commit, device and processor of a part."""
    machine = part.get("machine", {})
    device = part.get("device", "cpu")
    name = machine.get("cuda") if device == "cuda" else machine.get("cpu")
    return f"`{part['commit']}` on {name or device}, torch {machine.get('torch', '?')}"


def claims_text(parts: dict) -> str:
    """Which claims survive, a table a world."""
    text = "\n## Which claims survive\n"
    for size, seeds in named(parts, "claims").items():
        for seed, part in seeds.items():
            config = part["config"]
            text += f"\n### {WORDS[size]}, seed {seed}\n" + CLAIMING.format(
                size=size,
                words=WORDS[size],
                share=config["erase_share"],
                margin=config["margin"],
            )
            text += f"\nMade by {where(part)}.\n" + CLAIMS
            for each in part["claims"]:
                outcome = each["outcome"]
                if each["claim"].endswith("removes the signature"):
                    outcome += f": {each['why']}"
                text += f"| {each['claim']} | {each['published']} | {each['sound']} "
                text += f"| {outcome} |\n"
    return text


def curves_text(parts: dict, folder: Path) -> str:
    """Every eraser at several strengths, a table a size."""
    worlds = named(parts, "curve")
    if not worlds:
        return ""
    drawn = "two_hundred" if "two_hundred" in worlds else next(iter(worlds))
    points = [
        {**point, "place": place}
        for part in worlds[drawn].values()
        for place, point in _placed(worlds[drawn], part)
    ]
    draw_curve(points, folder / "pga_curve.svg")
    first = next(iter(worlds[drawn].values()))
    text = CURVES.format(
        recall=RECALL, utility=UTILITY, margin=first["margin"], plotted=WORDS[drawn]
    )
    for size, seeds in worlds.items():
        text += _one_size(size, seeds)
    return text


def _placed(seeds: dict[int, dict], part: dict) -> list[tuple[int, dict]]:
    names = _names(seeds)
    return [(names.index(each["eraser"]), each) for each in part["points"]]


def _names(seeds: dict[int, dict]) -> list[str]:
    return list(dict.fromkeys(p["eraser"] for s in seeds.values() for p in s["points"]))


def _one_size(size: str, seeds: dict[int, dict]) -> str:
    tested = next(iter(seeds.values()))["points"][0]["sequences"] // 2
    text = TABLE.format(
        words=WORDS[size],
        tested=f"{tested} + {tested}",
        plural="s" if len(seeds) > 1 else "",
        seeds=", ".join(map(str, seeds)),
        made="Made by " + "; ".join(dict.fromkeys(map(where, seeds.values()))) + ".",
    )
    passed, quiet = {}, {}
    for place, name in enumerate(_names(seeds)):
        mine = [p for s in seeds.values() for p in s["points"] if p["eraser"] == name]
        shown = [
            " ".join(format(each[key], form) if key in each else "" for each in mine)
            for key, form in (
                ("best", ".2f"),
                ("band", ".2f"),
                ("reach", ".2f"),
                ("recall", ".2g"),
                ("ratio", ".3f"),
            )
        ]
        outcome = ""
        if "ratio" in mine[0]:
            passed[name] = sum(each["passes"] for each in mine)
            quiet[name] = sum(each["quiet"] for each in mine)
            outcome = f"{passed[name]} of {len(mine)}"
        text += f"| {place} | {name} | {' | '.join(shown)} | {outcome} |\n"
    return text + _reading(seeds, passed, quiet)


def _reading(seeds: dict[int, dict], passed: dict, quiet: dict) -> str:
    margin, count = next(iter(seeds.values()))["margin"], len(seeds)
    never = [
        point["reach"]
        for part in seeds.values()
        for point in part["points"]
        if point["eraser"] == NEVER
    ]
    reaches = " ".join(f"{reach:.2f}" for reach in never)
    able = sum(reach < margin for reach in never)
    text = (
        f"\nIn the network that was never taught a code the same readers reach "
        f"{reaches}: equivalence within {margin:g} can be shown in {able} of {count} "
        "worlds.\n"
    )
    for words, found in (
        ("pass", passed),
        (
            "pass but for the test of equivalence (nothing found, recall and cost)",
            quiet,
        ),
    ):
        always = [name for name, times in found.items() if times == count]
        some = [
            f"{name} ({times})" for name, times in found.items() if 0 < times < count
        ]
        text += f"\n- in every world {words}: {', '.join(always) or 'none'}"
        text += f"; in some: {', '.join(some)}" if some else ""
    return text + "\n" + _closest(seeds) + _cut_off(seeds)


def _closest(seeds: dict[int, dict]) -> str:
    """What comes closest among the settings that meet the rest in every world."""
    every = [
        [p for part in seeds.values() for p in part["points"] if p["eraser"] == name]
        for name in _names(seeds)
    ]
    tried = [mine for mine in every if "ratio" in mine[0]]
    text = ""
    for words, key, meets in (
        (
            "meet recall and perplexity in every world, the one that hides most is",
            "reach",
            lambda p: (
                p["recall"] <= RECALL and p["ratio"] <= UTILITY and not p["role_swap"]
            ),
        ),
        (
            "are equivalent to chance in every world, the one that costs least is",
            "ratio",
            lambda p: p["shown gone"] and p["reading"] == "none",
        ),
    ):
        good = [mine for mine in tried if all(map(meets, mine))]
        if not good:
            text += f"- of those that {words}: none is there\n"
            continue
        best = min(good, key=lambda mine: max(p[key] for p in mine))
        shown = " ".join(f"{p[key]:.2f}" for p in best)
        areas = " ".join(f"{p['best']:.2f}" for p in best)
        name = "reach" if key == "reach" else "perplexity"
        text += f"- of those that {words} {best[0]['eraser']}: "
        text += f"{name} {shown}, best AUC {areas}\n"
    return text


def _cut_off(seeds: dict[int, dict]) -> str:
    cut = [str(s) for s, part in seeds.items() if not part.get("finished", True)]
    if not cut:
        return ""
    return f"\nCut off by the clock before every setting was tried: seed {cut[0]}.\n"
