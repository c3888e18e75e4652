"""Audits before and after a change: are they byte for byte the same?

``python -m tests.repository.golden --against REV`` takes the files of REV from git and
runs every case of ``cases.py`` with them and with this tree: the same packed models,
one thread, one machine. It compares ``audit.json`` byte for byte (but for ``runtime``
and what the manifest says of code and machine) and every score of the solver corpus.
All it asks of a tree is that ``worker.py`` knows the places of what it calls; documents
of an older schema are read as those of today's.
``--parts`` adds "reports", the pages of these audits, and "zoo", the weights of small
models trained again. The exit code is 1 where anything differs.

Without a revision it runs this tree alone and compares its audits with the committed
ones, byte for byte, which holds only on a machine like the one where they were made.

``--write`` makes the committed audits and answers again from this tree, those that the
tests compare on any machine; ``--worlds`` trains the packed models again before that,
which only a change of the worlds themselves asks for.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from audits.run.upgrade import upgrade
from tests.repository.golden import compare, corpus, worlds
from tests.repository.golden.cases import CASES, Case
from tests.repository.golden.worker import found

ROOT = Path(__file__).parents[3]
WORKER = Path(__file__).with_name("worker.py")
PARTS = ("audits", "corpus", "reports", "zoo")


def run(tree: Path, cases: Sequence[Case], packed: Path, out: Path, parts: Collection[str]) -> None:
    """Run cases with the code of ``tree`` alone, in a process of its own.

    Args:
        tree: Where the packages are.
        cases: What to audit.
        packed: Unpacked worlds.
        out: Where everything goes: a folder a case, "corpus.npz", "reports", "zoo".
        parts: Out of ``PARTS``; "reports" are those of the audits.

    Raises:
        subprocess.CalledProcessError: the tree cannot run them, as it has said.
    """
    out.mkdir(parents=True, exist_ok=True)
    tasks = {
        "tree": str(tree),
        "audits": [case.arguments(packed, out) for case in cases]
        if {"audits", "reports"} & set(parts)
        else [],
        "corpus": str(out / "corpus.npz") if "corpus" in parts else None,
        "reports": str(out / "reports") if "reports" in parts else None,
        "zoo": str(out / "zoo") if "zoo" in parts else None,
    }
    file = out / "tasks.json"
    file.write_text(json.dumps(tasks), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-P", str(WORKER), str(file)]
    subprocess.run(command, cwd=tree, env=environment, check=True)


def documents(cases: Sequence[Case], out: Path) -> dict[str, dict]:
    """What ``run`` wrote, canonical and in today's schema, by name of the case."""
    return {
        case.name: compare.canonical(
            upgrade(json.loads((out / case.name / "audit.json").read_text(encoding="utf-8")))
        )
        for case in cases
    }


def checkout(revision: str, tree: Path) -> Path:
    """The files of a commit, in a new folder ``tree``.

    Raises:
        subprocess.CalledProcessError: git knows no such commit, as it has said.
    """
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision]
    packed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        files.extractall(tree, filter="data")
    return tree


def differences(
    cases: Sequence[Case], before: Path, after: Path, parts: Collection[str]
) -> list[str]:
    """Everything but audits in which two runs are not byte for byte the same."""
    wrong = []
    if "corpus" in parts:
        with np.load(before / "corpus.npz") as one, np.load(after / "corpus.npz") as two:
            wrong += [
                f"solver corpus, {name}"
                for name in sorted({*one.files, *two.files})
                if name not in one
                or name not in two
                or not _same_answer(name, one[name], two[name])
            ]
    if "reports" in parts:
        wrong += [
            f"report of {case.name}"
            for case in cases
            if _digest(before / "reports" / case.name / "report.html")
            != _digest(after / "reports" / case.name / "report.html")
        ]
    if "zoo" in parts:
        wrong += [
            f"zoo of {world}: weights of {name}"
            for world in ("bios", "digits")
            for name in _weights_apart(before / "zoo" / world, after / "zoo" / world)
        ]
    return wrong


def _same_answer(name: str, one: np.ndarray, two: np.ndarray) -> bool:
    """Scores to the byte; certificates, sums of what is left, nearly.

    Where arrays lie in memory can change the last digits of such a sum: so it was with
    one of sixty certificates between two runs of the same files.
    """
    if name.endswith("certificate"):
        return bool(np.allclose(one, two, rtol=0.01, atol=1e-10))
    return one.shape == two.shape and one.tobytes() == two.tobytes()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _weights_apart(before: Path, after: Path) -> list[str]:
    one, two = (
        json.loads((root / "manifest.json").read_text(encoding="utf-8"))["models"]
        for root in (before, after)
    )
    every = sorted(one.keys() | two.keys())
    return [name for name in every if one.get(name) != two.get(name)]


def show(apart: Mapping[str, list[str]], total: int) -> None:
    """Print where audits differ, and how many of them do."""
    for lines in apart.values():
        print(*lines, sep="\n")
    print(f"{len(apart)} of {total} audits differ")


def against(revision: str, cases: Sequence[Case], parts: Collection[str], jobs: int) -> int:
    """Run both trees, print what differs; 1 where anything does."""
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        work = Path(scratch)
        packed = worlds.unpack(work / "worlds")
        trees = {"before": checkout(revision, work / "tree"), "after": ROOT}

        def one(name: str) -> None:
            run(trees[name], cases, packed, work / name, parts)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(one, trees))
        apart = {}
        if "audits" in parts:
            before, after = (documents(cases, work / name) for name in trees)
            apart = compare.audits_apart(before, after)
            show(apart, len(cases))
        wrong = differences(cases, work / "before", work / "after", parts)
    for line in wrong:
        print(line)
    print("different" if wrong or apart else f"the same: {', '.join(parts)}")
    return int(bool(wrong or apart))


def against_kept(cases: Sequence[Case]) -> int:
    """Run this tree, print in which audits it differs from the committed; 1 where in any."""
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        work = Path(scratch)
        packed = worlds.unpack(work / "worlds")
        run(ROOT, cases, packed, work / "out", ["audits"])
        made = documents(cases, work / "out")
    kept = compare.kept_audits()
    apart = compare.audits_apart({name: kept[name] for name in made}, made)
    show(apart, len(cases))
    return int(bool(apart))


def write(cases: Sequence[Case]) -> None:
    """Make the committed audits and answers of solvers again; other cases stay."""
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        work = Path(scratch)
        packed = worlds.unpack(work / "worlds")
        run(ROOT, cases, packed, work / "out", ["audits"])
        made = documents(cases, work / "out")
    known = {case.name for case in CASES}
    before = compare.load_audits() if compare.AUDITS.is_file() else {}
    kept = {name: each for name, each in before.items() if name in known}
    compare.save_audits(kept | made)
    corpus.write(compare.CORPUS, found)


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--against", metavar="REV")
    what.add_argument("--write", action="store_true")
    parser.add_argument("--worlds", action="store_true", help="with --write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: audits and corpus")
    parser.add_argument("--jobs", type=int, default=1, help="2: both trees at once")
    parser.add_argument("--only", default="", help="cases with this in their name")
    asked = parser.parse_args()
    cases = [case for case in CASES if asked.only in case.name]
    if not cases:
        parser.error(f"no case has {asked.only!r} in its name")
    if asked.against:
        return against(asked.against, cases, asked.parts or PARTS[:2], asked.jobs)
    if not asked.write:
        if set(asked.parts or ()) - {"audits"}:
            parser.error("of the committed, only audits are compared; name a revision")
        return against_kept(cases)
    if asked.worlds:
        worlds.write()
    write(cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
