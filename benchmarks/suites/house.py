"""The state of the repository in figures: size, names, generated pages, start-up times.

python -m benchmarks house
python -m benchmarks house --only tests      # runs `make test`, about 12 minutes
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.harness.results import ROOT, Row, at_most, row
from benchmarks.harness.runner import Run, Suite

OLD_NAMES = Path(__file__).with_name("old_names.tsv")
PACKAGES = (
    *("evidence", "capture", "probes", "attribution", "erasure", "testbeds"),
    *("audits", "experiments", "exhume", "benchmarks"),
)
LIBRARIES = {(name, ".") for name in ("torch", "np", "numpy", "nb")}


def options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument(
        "--since", default="93c6fe6", help="commit that pages and golden audits are held against"
    )


SUITE = Suite("house", "The repository itself: size, names, start-up.", "house", options=options)


def tracked(*patterns: str) -> list[Path]:
    """Files under version control that match."""
    command = ("git", "ls-files", "-z", "--", *patterns)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    found = [ROOT / name for name in done.stdout.split("\0") if name]
    return [path for path in found if path.is_file()]


@SUITE.part()
def size(run: Run) -> Iterator[Row]:
    """Modules a folder, lines, the longest module."""
    modules = tracked(*(f"{name}/*.py" for name in PACKAGES))
    folders = Counter(path.parent for path in modules if path.name != "__init__.py")
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    yield row("modules in the largest folder", max(folders.values()), at_most(12), n=len(folders))
    yield row("lines of product and benchmarks", sum(lines.values()), at_most(56_000), n=len(lines))
    yield row("lines of the longest module", max(lines.values()), at_most(600), n=len(lines))


@SUITE.part()
def names(run: Run) -> Iterator[Row]:
    """Old names of the table of names that are left in code and documents."""
    left = old_names_left()
    rows = {line for line, _, _ in left}
    yield row("old names of the table left", sum(left.values()), at_most(0), "uses", n=len(table()))
    yield row("rows of the table with old names left", len(rows), at_most(0), n=len(table()))


@SUITE.part()
def generated(run: Run) -> Iterator[Row]:
    """Bytes that differ in generated pages and golden audits."""
    since, changed, counted = run.args.since, 0, 0
    golden = tracked("tests/repository/golden/*", ":!*.py")
    for path in [*golden, *tracked("docs/results/*.md")]:
        name = path.relative_to(ROOT).as_posix()
        before = _at(since, name) or _at(since, name.replace("docs/results/", "docs/"))
        if before is None:
            continue
        counted += 1
        now = path.read_bytes()
        if now != before:
            old, new = (Counter(text.splitlines(keepends=True)) for text in (before, now))
            changed += sum(len(line) for line in ((old - new) + (new - old)).elements())
            print(f"  {name} differs")
    yield row(
        "bytes of generated pages and golden audits changed",
        changed,
        at_most(0),
        "bytes",
        f"commit {since}",
        n=counted,
    )


@SUITE.part()
def startup(run: Run) -> Iterator[Row]:
    """Seconds until the package is imported and the command answers."""
    for figure, target, code in (
        ("import exhume", 0.3, "import exhume"),
        ("exhume --help", 0.6, "import sys; sys.argv=['exhume', '--help']; "
         "from exhume.cli.app import app; app()"),
    ):  # fmt: skip
        seconds = []
        for _ in range(max(5, run.clock.repeats)):
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
            seconds.append(time.perf_counter() - start)
            if done.returncode:
                raise SystemExit(done.stderr.decode())
        spread = (max(seconds) - min(seconds)) / 2
        yield row(
            figure, statistics.median(seconds), at_most(target), "s", n=len(seconds), spread=spread
        )
    loaded = (
        "import sys, exhume;print(sum(name in sys.modules for name in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, check=True)
    yield row("model libraries loaded by import exhume", int(done.stdout), at_most(0))


@SUITE.part(default=False)
def tests(run: Run) -> Iterator[Row]:
    """Seconds of `make test`."""
    start = time.perf_counter()
    lines = []
    command = ["make", "test"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit("make test failed; its time means nothing")
    found = re.search(r"(\d+) passed", "".join(lines))
    yield row("make test", seconds, at_most(558), "s", n=int(found[1]) if found else 1)


def table() -> list[tuple[int, str, list[str]]]:
    """Rows of the table: number, files, and old names or phrases."""
    found = []
    for line in OLD_NAMES.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            number, files, words = line.split("\t")
            apart = words.split(";") if files == "docs" else words.split()
            found.append((int(number), files, apart))
    return found


def _covers(files: str, name: str) -> bool:
    """Whether a file fits one of the patterns and none of those after an exclamation mark."""
    patterns = files.split()
    left_out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(fnmatch(name, pattern) for pattern in patterns) and not any(
        fnmatch(name, pattern) for pattern in left_out
    )


def old_names_left() -> Counter[tuple[int, str, str]]:
    """Uses of old names, by row of the table, file and name.

    Identifiers are counted in Python files, without strings and comments: stored strings
    keep their words. Phrases are counted in documents that people write, outside quotation
    marks: a label that a report shows keeps its words.
    """
    found: Counter[tuple[int, str, str]] = Counter()
    rows = table()
    for path in tracked("*.py"):
        name = path.relative_to(ROOT).as_posix()
        tokens = _identifiers(path)
        for number, files, words in rows:
            if files != "docs" and _covers(files, name):
                for word in words:
                    if tokens[word]:
                        found[number, name, word] += tokens[word]
    for path in tracked("*.md", ":!docs/results", ":!docs/glossary.md"):
        text = re.sub(r'"[^"\n]*"', "", path.read_text(encoding="utf-8").lower())
        for number, files, phrases in rows:
            if files == "docs":
                for phrase in phrases:
                    if phrase in text:
                        found[number, path.relative_to(ROOT).as_posix(), phrase] += text.count(
                            phrase
                        )
    return found


def _identifiers(path: Path) -> Counter[str]:
    """Names in a Python file, without those of numpy and torch (``torch.eye``)."""
    found: Counter[str] = Counter()
    before = ("", "")
    with path.open(encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NAME and before not in LIBRARIES:
                found[token.string] += 1
            before = (before[1], token.string)
    return found


def _at(commit: str, name: str) -> bytes | None:
    command = ["git", "show", f"{commit}:{name}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    return None if done.returncode else done.stdout
