"""What becomes of inputs that are broken, hostile or only odd: counts of thousands.

Every kind of file the program reads is altered by field, by byte and by what stands in
its place, and read by the command a user would run, in a process of its own that is
watched (see ``tests/security/fuzz``). Interrupted, the same command goes on; another
version of the program starts from scratch. About an hour on two cores for 3,000 inputs.

    python -m benchmarks bad-inputs --inputs 3000 --seed 0
    python -m benchmarks bad-inputs --kinds "LoRA adapter" --inputs 200 --no-result
    python -m benchmarks bad-inputs --case '{"kind": ..., "edits": [...]}'
"""

import argparse
import json
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from audits.output.manifest import code_hash
from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run, Suite
from capture.checkpoints.cache import cache_root
from evidence.errors import InputError
from tests.security.fuzz.generate import draw, sample
from tests.security.fuzz.inputs.case import Case
from tests.security.fuzz.inputs.catalogue import Kind
from tests.security.fuzz.inputs.catalogue_more import ALL
from tests.security.fuzz.judge import FAULTS, Outcome
from tests.security.fuzz.pool import bench, try_all
from tests.security.fuzz.scenarios import scenarios
from tests.security.fuzz.shrink import smallest

PEER = "what a user must see: the work done, or one clear line"
INPUTS = 2000
"""Fewest altered inputs that the counts are of."""


def cases_of(kinds: Iterable[Kind], inputs: int, seed: int, root: Path) -> list[Case]:
    """Valid examples, known attacks, and altered ones: half listed, half drawn."""
    chosen = list(kinds)
    whole = sum(kind.weight for kind in chosen)
    names = [kind.name for kind in chosen]
    found = [Case(name) for name in names]
    found += [case for case in scenarios() if case.kind in names]
    with bench(root, "examples") as made:
        for kind in chosen:
            count = -(-inputs * kind.weight // whole)
            place = made.prepare(kind)
            listed = sample(kind, place, -(-count // 2), seed)
            found += listed + draw(kind, place, count - len(listed), seed)
    cases = list({case.key: case for case in found}.values())
    # Mixed, so that what was tried when a run was broken off is of every kind.
    random.Random(seed).shuffle(cases)
    return cases


class Log:
    """What was tried, one line of JSON each, kept as it comes."""

    def __init__(self, root: Path):
        self.path, self.failures = root / "tried.jsonl", root / "failures"
        self.failures.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, dict] = {}
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self.known[row["key"]] = row

    def add(self, case: Case, outcome: Outcome) -> None:
        """Keep an outcome; of a bad one also how to see it again."""
        row = {"key": case.key, "kind": case.kind, "valid": not case.edits}
        row |= asdict(outcome)
        if outcome.faults:
            row["case"] = case.text()
            text = json.dumps(row, indent=1)
            command = f"python -m benchmarks bad-inputs --case '{case.text()}'"
            (self.failures / f"{case.key}.txt").write_text(
                f"{command}\n\n{text}\n", encoding="utf-8"
            )
            print(f"BAD {case.kind}: {', '.join(outcome.faults)}: {case.text()[:300]}")
        self.known[case.key] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if len(self.known) % 100 == 0:
            bad = sum(bool(each["faults"]) for each in self.known.values())
            print(f"{len(self.known)} tried, {bad} with faults", flush=True)


def report(found: list[dict]) -> Iterator[Row]:
    """Counts and times of what was tried, then each kind."""
    valid = [each for each in found if each["valid"]]
    altered = [each for each in found if each["altered"]]
    fine = [each for each in altered if not each["faults"]]
    refused = sum(not each["accepted"] for each in fine)
    expected = [each for each in valid if ALL[each["kind"]].reads]
    accepted = sum(each["accepted"] and not each["faults"] for each in expected)
    share = accepted / max(1, len(expected))
    seconds = [each["seconds"] for each in altered] or [0.0]
    count, kinds = len(altered), at_least(len(ALL))
    for figure, value, goal, unit, n in (
        ("altered inputs tried", count, at_least(INPUTS), "inputs", count),
        ("kinds of input tried", len(valid), kinds, "kinds", len(valid)),
        ("valid examples accepted", share, at_least(1.0), "share", len(expected)),
        ("altered inputs refused in one clear line", refused, at_most(), "inputs", count),
        ("altered inputs accepted", len(fine) - refused, at_most(), "inputs", count),
        *((fault, _faulty(found, fault), at_most(0), "inputs", len(found)) for fault in FAULTS),
        ("longest time of an input", max(seconds), at_most(10), "s", count),
        ("median time of an input", statistics.median(seconds), at_most(), "s", count),
    ):
        yield row(figure, value, goal, unit, PEER, n)
    tried = Counter(each["kind"] for each in altered)
    bad = Counter(each["kind"] for each in found if each["faults"])
    taken = Counter(each["kind"] for each in altered if each["accepted"])
    for name, n in sorted(tried.items()):
        figure, more = f"{name}: inputs with a fault", {"accepted": taken[name]}
        yield row(figure, bad[name], at_most(0), "inputs", "none", n, **more)


def _faulty(found: list[dict], fault: str) -> int:
    return sum(fault in each["faults"] for each in found)


def one(text: str, root: Path) -> int:
    """Try one input and show all that came of it."""
    case = Case.of(text)
    with bench(root) as made:
        outcome = made.tried(case)
        if outcome.faults:
            case, outcome = smallest(case, outcome, made.tried)
            outcome = made.tried(case)
        print(f"smallest: {case.text()}")
        print(json.dumps(asdict(outcome), indent=1))
        for name in ("stdout", "stderr", "events", "stack"):
            path = made.place / "case" / name
            text = (
                path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""
            )
            print(f"--- {name}\n{text}")
    return int(bool(outcome.faults))


def _options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--inputs", type=int, default=3000)
    add("--seed", type=int, default=0)
    add("--jobs", type=int, default=2)
    add("--kinds", default="", help="part of the names of kinds")
    add("--root", type=Path, default=cache_root() / "bad-inputs")
    add("--case", default="", help="one input, as it was printed")


SUITE = Suite(
    "bad-inputs",
    "What becomes of inputs that are broken, hostile or only odd: counts of thousands.",
    result="bad_inputs",
    options=_options,
    threads=1,
)


@SUITE.part("bad inputs")
def measure(run: Run) -> Iterator[Row]:
    """Valid examples, known attacks and altered inputs of every kind."""
    args = run.args
    root = args.root.resolve() / code_hash()[:12]
    root.mkdir(parents=True, exist_ok=True)
    if args.case:
        raise SystemExit(one(args.case, root))
    kinds = [kind for name, kind in ALL.items() if args.kinds in name]
    if not kinds:
        raise InputError(
            "no kind of input has such a name", expected=", ".join(ALL), got=args.kinds
        )
    log = Log(root)
    cases = cases_of(kinds, args.inputs, args.seed, root)
    left = [case for case in cases if case.key not in log.known]
    print(f"{len(cases)} inputs of {len(kinds)} kinds, {len(left)} not yet tried")
    try_all(left, root, args.jobs, log.add)
    yield from report([log.known[case.key] for case in cases])
