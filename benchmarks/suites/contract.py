"""The contract of axes, modalities and methods in figures: places to touch, types, repetition.

python -m benchmarks contract
python -m benchmarks contract --only time --against REV     # a quick audit, against a commit
"""

import argparse
import ast
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks.harness.results import ROOT, Row, at_most, row
from benchmarks.harness.runner import Run, Suite
from benchmarks.suites.house import PACKAGES, tracked

MAX_SHARED = 6
"""Lines of the same shape that make a pair of near-identical places."""
DEMO = ROOT / "exhume-demo"
"""Where `make demo` leaves the suppressed SmolLM2."""
SECTIONS = {
    "axis": ("An evidence axis", 2),
    "modality": ("A modality", 3),
    "method": ("An unlearning method", 2),
    "model family": ("A model family", 2),
}
"""Sections of CONTRIBUTING.md with a complete example, and the places that it may touch."""


def options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument("--against", default="7cec3f5", help="commit that the time is held against")


SUITE = Suite(
    "contract", "Axes, modalities and methods under one contract.", "contract", options=options
)


@SUITE.part()
def places(run: Run) -> Iterator[Row]:
    """Places that a complete example of CONTRIBUTING.md touches; tests run every example."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name, (heading, allowed) in SECTIONS.items():
        section = text.split(f"### {heading}\n")[1].split("\n### ")[0]
        touched = re.search(r"<!-- places: (.+?) -->", section)
        if touched is None:
            raise SystemExit(f"{heading} of CONTRIBUTING.md does not list the places it touches")
        files = touched[1].split(", ")
        yield row(f"places to touch for a new {name}", len(files), at_most(allowed), n=len(files))


@SUITE.part()
def types(run: Run) -> Iterator[Row]:
    """Untyped dictionaries that are left."""
    product = tracked(*(f"{name}/*.py" for name in PACKAGES if name != "benchmarks"))
    counts = {path: path.read_text(encoding="utf-8").count("dict[str, Any]") for path in product}
    inner = [
        count
        for path, count in counts.items()
        if any(f"audits/{part}/" in path.as_posix() for part in ("axes", "verdict", "report"))
    ]
    yield row("dict[str, Any] in the product", sum(counts.values()), at_most(40), n=len(counts))
    yield row("dict[str, Any] in axes, verdict, report", sum(inner), at_most(0), n=len(inner))


@SUITE.part()
def size(run: Run) -> Iterator[Row]:
    """Lines, and near-identical places."""
    modules = tracked(*(f"{name}/*.py" for name in PACKAGES))
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in modules]
    yield row("lines of product and benchmarks", sum(lines), at_most(49_000), n=len(lines))
    pairs = near_identical(modules)
    for one, other in sorted(pairs):
        print(f"  {one} ~ {other}")
    yield row(
        f"pairs of places that share {MAX_SHARED} lines or more",
        len(pairs),
        at_most(60),
        n=len(modules),
    )


@SUITE.part(default=False)
def audits(run: Run) -> Iterator[Row]:
    """Kept audits of schema 1.1 whose upgrade differs from a fresh run, byte for byte."""
    command = [sys.executable, "-m", "tests.repository.golden", "--parts", "audits"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    print(done.stdout[-2000:])
    changed = re.search(r"(\d+) of (\d+) audits differ", done.stdout)
    if changed is None:
        raise SystemExit(done.stderr[-2000:])
    figure = "golden audits whose upgrade differs from a fresh run"
    yield row(figure, int(changed[1]), at_most(0), n=int(changed[2]))


@SUITE.part(default=False)
def time_of_audits(run: Run) -> Iterator[Row]:
    """Seconds of a quick audit of a small world, here and at a commit, in turn."""
    yield _compared(run, "invented people", _INVENTED, max(3, run.clock.repeats))


@SUITE.part(default=False)
def time_of_smollm2(run: Run) -> Iterator[Row]:
    """Seconds of a quick audit of a suppressed SmolLM2 of the demo, here and at a commit."""
    if not (DEMO / "unlearned").exists():
        raise SystemExit(f"{DEMO} is not there: run `make demo` first")
    yield _compared(run, "SmolLM2", _SMOLLM2, 2)


def _compared(run: Run, world: str, code: str, repeats: int) -> Row:
    """Median seconds of an audit here over those at a commit, in turn."""
    with tempfile.TemporaryDirectory() as scratch:
        before = Path(scratch) / "before"
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(before), run.args.against],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        try:
            seconds = defaultdict(list)
            for repeat in range(repeats):
                for tree in (before, ROOT):
                    out = Path(scratch) / f"{tree.name}-{repeat}"
                    seconds[tree].append(_seconds(code, tree, Path(scratch) / "world", out))
        finally:
            subprocess.run(
                ["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=False
            )
    ours, theirs = median(seconds[ROOT]), median(seconds[before])
    spread = (max(seconds[ROOT]) - min(seconds[ROOT])) / 2
    return row(
        f"seconds of a quick audit, {world}, over those before",
        ours / theirs,
        at_most(1.0),
        "x",
        f"commit {run.args.against}",
        len(seconds[ROOT]),
        spread / theirs,
        ours=ours,
    )


_INVENTED = """
import json, sys, time, exhume
from testbeds.zoo.build import build_zoo
world, out = sys.argv[1:]
made = build_zoo(world, world="bios", seeds=[0], families=["llama"],
                 only=["last_block_relabel"])[0]
start = time.perf_counter()
exhume.audit(made.world.original, made.model, made.world.forget, made.world.retain, out,
             never_taught=made.world.never_taught)
print(json.dumps(time.perf_counter() - start))
"""
_SMOLLM2 = """
import json, sys, time, exhume
from testbeds.worlds.smollm2 import fetch_smollm2
_, out = sys.argv[1:]
start = time.perf_counter()
exhume.audit(fetch_smollm2(), "DEMO/unlearned", "DEMO/items/forget.jsonl",
             "DEMO/items/retain.jsonl", out, profile="quick")
print(json.dumps(time.perf_counter() - start))
""".replace("DEMO", str(DEMO))


def _seconds(code: str, tree: Path, world: Path, out: Path) -> float:
    """Seconds of one audit by the code of a tree; the world is made once."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(world), str(out)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def near_identical(modules: list[Path]) -> set[tuple[str, str]]:
    """Pairs of places whose lines have the same shape: names, strings and numbers may differ.

    Two runs of one pair of modules that lie within a few lines of each other count once. Imports,
    comments, docstrings, declared fields and closing brackets do not count.
    """
    places: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    shapes = [_shapes(path) for path in modules]
    for index, lines in enumerate(shapes):
        for start in range(len(lines) - MAX_SHARED + 1):
            window = tuple(shape for _, shape in lines[start : start + MAX_SHARED])
            if len(set(window)) > 2:
                places[window].append((index, start))
    runs: dict[tuple[int, int], set[tuple[int, int]]] = defaultdict(set)
    for found in places.values():
        if len(found) > 8:  # too common to be a copy
            continue
        for number, (one, first) in enumerate(found):
            for other, second in found[number + 1 :]:
                if one != other or second - first >= MAX_SHARED:
                    runs[one, other].add((first, second))
    pairs = set()
    for (one, other), starts in runs.items():
        last = (-100, -100)
        for first, second in sorted(starts):
            if first - last[0] > MAX_SHARED or abs(second - last[1]) > 2 * MAX_SHARED:
                ends = shapes[one][first][0], shapes[other][second][0]
                names = [modules[each].relative_to(ROOT).as_posix() for each in (one, other)]
                pairs.add((f"{names[0]}:{ends[0]}", f"{names[1]}:{ends[1]}"))
            last = first, second
    return pairs


def _shapes(path: Path) -> list[tuple[int, str]]:
    """Line number and shape of every line that counts."""
    kinds: dict[int, list[str]] = defaultdict(list)
    source = path.read_text(encoding="utf-8")
    imported = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = {tokenize.STRING: "s", tokenize.NUMBER: "0"}.get(token.type, token.string)
        if token.type == tokenize.NAME and not _KEYWORDS.fullmatch(token.string):
            text = "n"
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            kinds[token.start[0]].append(text)
    lines = []
    for number in sorted(kinds):
        shape = " ".join(kinds[number])
        # Docstrings, and fields and parameters with their types.
        declared = shape == "s" or _DECLARED.match(shape)
        if not declared and number not in imported and "n" in shape:
            lines.append((number, shape))
    return lines


_DECLARED = re.compile(r"@ |class |n : [^=(]*( = [^(]*)?$")
_KEYWORDS = re.compile(
    "and|as|assert|async|await|break|class|continue|def|del|elif|else|except|finally|for|from|if"
    "|import|in|is|lambda|nonlocal|not|or|pass|raise|return|try|while|with|yield|None|True|False"
)
