"""Tries inputs in servers, several at once, and says what came of each."""

import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.security.fuzz.inputs import seeds
from tests.security.fuzz.inputs.case import Case
from tests.security.fuzz.inputs.catalogue import Kind
from tests.security.fuzz.inputs.catalogue_more import ALL
from tests.security.fuzz.inputs.edits import apply
from tests.security.fuzz.judge import Outcome, judge, snapshot

ROOT = Path(__file__).parents[3]
PLACES = ("in", "out", "tmp", "cache", "home", "cwd")


class Bench:
    """One server and the folder its cases live in.

    Args:
        root: Folder shared by all: examples and what hostile values point to.
        name: Of this bench, below ``root``.
        limit: Seconds of a case's own time, waiting for a processor not counted.
    """

    def __init__(self, root: Path, name: str = "bench", limit: float = 10.0):
        self.limit = limit
        self.root, self.place = root, root / name
        self.place.mkdir(parents=True, exist_ok=True)
        self.evil = seeds.make("evil", root)
        self.known: set[str] = set()
        self.loaded: set[str] = set()
        self.imports: list[str] = []
        self.server: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        modules = seeds.make("canary", self.root)
        path = os.pathsep.join([str(ROOT), str(modules)])
        settings = {
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # A model is looked for on the network, where the watch stops it.
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self.root / "hub"),
            "EXHUME_CANARY": str(self.place / "case" / "canary"),
            "NO_COLOR": "1",
            "TERM": "dumb",
        }
        with (self.place / "server.log").open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.security.fuzz.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.place,
                env=os.environ | settings,
            )

    def prepare(self, kind: Kind) -> Path:
        """A folder with the valid example of a kind."""
        case = self.place / "case"
        if case.exists():
            shutil.rmtree(case)
        for name in PLACES:
            (case / name).mkdir(parents=True)
        if kind.seeds:
            seeds.make("other", self.root)
        for folder, seed in kind.seeds.items():
            made = seeds.make(seed, self.root)
            shutil.copytree(made, case / folder, dirs_exist_ok=True, symlinks=True)
        (case / "answers").write_text("y\n" * 1000)
        return case

    def tried(self, case: Case, kind: Kind | None = None) -> Outcome:
        """Try one input; of a kind not met before, its valid example first."""
        kind = kind or ALL[case.kind]
        if kind.name not in self.known:
            self.known.add(kind.name)
            self.imports += [each for each in kind.imports if each not in self.loaded]
            self.loaded.update(kind.imports)
            if case.edits:
                self._try(Case(kind.name), kind, learn=True)
        return self._try(case, kind, learn=not case.edits)

    def _try(self, case: Case, kind: Kind, learn: bool) -> Outcome:
        place = self.prepare(kind)
        names = {
            "evil": str(self.evil),
            "other": str(self.root / "seeds" / "other"),
            "fifo": str(self._pipe()),
            "missing": str(place / "cwd" / "missing"),
        }
        given = [_absolute(each, place) for each in kind.arguments]
        expected = self._expected(kind)
        given, altered = apply(case.edits, place, kind.formats, given, names)
        asked = kind.name.startswith("arguments")
        conditions = [each.value for each in case.edits if each.how == "condition"]
        seen = ("in", "out", "home") if asked else ("in", "out", "home", "cwd")
        before = {name: snapshot(place / name) for name in seen}
        answer = self._asked(
            {
                "root": str(place),
                "arguments": given,
                "twin": kind.twin,
                "stops": kind.stops,
                "learn": learn,
                "roams": asked,
                "conditions": conditions,
                "limit": self.limit,
                "imports": self.imports,
            }
        )
        self.imports = []
        if learn and (place / "modules").exists():
            self.imports = json.loads((place / "modules").read_text())
        outcome = judge(
            place,
            answer,
            before,
            makes=kind.makes,
            keeps=kind.keeps,
            expected=expected,
            asked=asked,
            untold="full terminal" in conditions,
        )
        return replace(outcome, altered=altered)

    def _expected(self, kind: Kind) -> dict[str, Any] | None:
        if not kind.result:
            return None
        path = seeds.make(kind.result, self.root) / "audit.json"
        document = json.loads(path.read_text("utf-8"))
        return {part: document[part] for part in ("verdict", "axes", "behaviour")}

    def _pipe(self) -> Path:
        path = self.place / "pipe"
        if not path.exists():
            os.mkfifo(path)
        return path

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        server = self.server = self.server or self._start()
        assert server.stdin and server.stdout
        try:
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        log = (self.place / "server.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the server ended: {log}")

    def close(self) -> None:
        """End the server."""
        if self.server is None:
            return
        with self.server as server:
            assert server.stdin
            server.stdin.close()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def _absolute(argument: str, place: Path) -> str:
    below = argument in (".", "in", "out") or argument.startswith(("in/", "out/"))
    return str(place / argument) if below else argument


@contextmanager
def bench(root: Path, name: str = "bench", limit: float = 10.0) -> Iterator[Bench]:
    """A bench for the length of a block."""
    made = Bench(root, name, limit)
    try:
        yield made
    finally:
        made.close()


def try_all(
    cases: Iterable[Case], root: Path, jobs: int, on_outcome: Callable[[Case, Outcome], None]
) -> None:
    """Try cases on several benches; ``on_outcome`` is called with each as it is done."""
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with bench(root, f"bench{number}") as made:
                while not failures:
                    try:
                        case = waiting.get_nowait()
                    except queue.Empty:
                        return
                    outcome = made.tried(case)
                    with lock:
                        on_outcome(case, outcome)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
