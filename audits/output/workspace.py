"""Resumable stages: a work folder whose finished stages survive interruption."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

import psutil

from audits.output.outputs import AUDIT, MARK, WORK, OutputKind, check_output_folder, clear_outputs
from evidence.errors import InputError
from evidence.progress import AUTO, Progress, as_progress
from evidence.results import AxisResult
from evidence.storage.files import read_json, write_atomic
from evidence.storage.regular_files import open_regular
from evidence.typed_json import Json, from_json, to_json

Stored = TypeVar("Stored")

# Increase when stage contents change meaning, so that old work is not reused.
STAGE_VERSION = "1"
MAX_STAGE_BYTES = 1 << 30


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)


@dataclass(frozen=True)
class Stage:
    """Result of a stage, and its cost in the run that computed it."""

    result: Any
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Workspace:
    """``OUT/work``: one JSON file per finished stage, kept until the inputs change.

    Attributes:
        nested: Seconds of the stages inside each stage that is running, outermost first.
    """

    root: Path
    nested: list[float] = field(default_factory=list, repr=False, compare=False)

    @property
    def work(self) -> Path:
        """Folder of stages and activations."""
        return self.root / WORK

    @classmethod
    def open(
        cls, root: Path, fingerprint: dict[str, Json], fresh: bool, kind: OutputKind = AUDIT
    ) -> "Workspace":
        """Open or create the folder for exactly these inputs.

        The caller holds the folder (``evidence.storage.locks.run_lock``).

        Args:
            root: The output folder.
            fingerprint: Everything the result depends on.
            fresh: Delete what another run of this kind left there.
            kind: What is written there.

        Raises:
            InputError: the folder holds another audit, is a file, or holds files that are not
                an audit's; nothing was changed.
        """
        text = canonical_json(fingerprint | {"stage_version": STAGE_VERSION})
        digest = hashlib.sha256(text.encode()).hexdigest()
        existing = check_output_folder(root, kind)
        if existing != digest:
            if existing is not None and not fresh:
                difference = "other inputs, settings or version" if existing else "damaged"
                raise InputError(
                    f"{root} holds another {kind.name} ({difference})",
                    fix="choose another --out, or pass --fresh to replace it",
                )
            clear_outputs(root, kind)
        elif fresh:
            clear_outputs(root, kind)
        if fresh or existing != digest:
            mark = {"kind": kind.name, "sha256": digest, "inputs": fingerprint}
            write_atomic(root / MARK, canonical_json(mark))
        return cls(root)

    def saved(self, name: str, type_: type[Stored]) -> Stored:
        """The saved result of a stage.

        Raises:
            InputError: the stage was not run, or its file is damaged.
        """
        done = self._saved(self.work / "stages" / f"{name}.json")
        if done is None:
            raise InputError(
                f"{self.root} does not hold the measurement {name}",
                expected="the output folder of a finished audit, with its work folder",
                fix="run the audit again",
            )
        return from_json(type_, done.result)

    def run(self, name: str, compute: Callable[[], Any], files: Sequence[str] = ()) -> Stage:
        """Load the stage's saved result, or compute and save it.

        The result always goes through its JSON text, so that a resumed and an uninterrupted
        audit continue from the same bytes. A stage whose file is damaged, or that lost one of
        ``files``, is computed again.

        Args:
            compute: Returns a JSON-serializable result.
            files: Other files that the stage writes into the work folder.
        """
        path = self.work / "stages" / f"{name}.json"
        done = self._saved(path)
        if done is None:
            start = perf_counter()
            self.nested.append(0.0)
            try:
                result = json.loads(canonical_json(compute()))
            finally:
                total, inner = perf_counter() - start, self.nested.pop()
                if self.nested:
                    self.nested[-1] += total
            saved = {
                "result": result,
                # Stages that it ran have a cost of their own.
                "seconds": total - inner,
                "peak_memory_bytes": peak_memory(),
                "files": {file: self._hash(file) for file in files},
            }
            write_atomic(path, canonical_json(saved | {"sha256": _digest(saved)}))
            done = self._saved(path)
            assert done is not None
        return done

    def _saved(self, path: Path) -> Stage | None:
        """A saved stage; None where the file is missing or damaged."""
        try:
            saved = read_json(path, max_bytes=MAX_STAGE_BYTES)
        except InputError:
            return None
        if saved.pop("sha256", None) != _digest(saved):
            return None
        files = saved.pop("files")
        if any(self._hash(name) != digest for name, digest in files.items()):
            return None
        return Stage(**saved)

    def _hash(self, name: str) -> str | None:
        """sha256 of a file in the work folder; None where there is no such regular file."""
        try:
            with open_regular(self.work / name) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore
        except InputError:
            return None


@dataclass(frozen=True)
class StageRunner:
    """Runs the stages of one audit and records their cost.

    Attributes:
        cost: Seconds and peak memory by stage.
    """

    workspace: Workspace
    progress: Progress = AUTO
    cost: dict[str, dict[str, float]] = field(default_factory=dict)

    def stage(self, name: str, compute: Callable[[], Any], files: Sequence[str] = ()) -> Any:
        """The stage's result, computed or loaded; arguments as ``Workspace.run``."""
        start = perf_counter()
        done = self.workspace.run(name, compute, files)
        as_progress(self.progress).note(f"stage {name} done in {perf_counter() - start:.0f} s")
        self.cost[name] = {"seconds": done.seconds, "peak_memory_bytes": done.peak_memory_bytes}
        return done.result

    def typed(
        self,
        name: str,
        type_: type[Stored],
        compute: Callable[[], Stored],
        files: Sequence[str] = (),
    ) -> Stored:
        """As ``stage``, for a typed result."""
        saved = self.stage(name, lambda: to_json(compute(), type_), files)
        return from_json(type_, saved)

    def timed(self, name: str, compute: Callable[[], Stored]) -> Stored:
        """Compute what is too cheap to save, and record its cost."""
        start = perf_counter()
        result = compute()
        self.cost[name] = {"seconds": perf_counter() - start, "peak_memory_bytes": peak_memory()}
        return result

    def with_cost(self, axes: Mapping[str, AxisResult]) -> dict[str, AxisResult]:
        """The axes, each with the cost of the stages whose names start with its own."""
        result = {}
        for name, axis in axes.items():
            spent = [cost for stage, cost in self.cost.items() if stage.split("-")[0] == name]
            result[name] = replace(
                axis,
                seconds=sum(cost["seconds"] for cost in spent),
                peak_memory_bytes=int(
                    max((cost["peak_memory_bytes"] for cost in spent), default=0)
                ),
            )
        return result


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    info = psutil.Process().memory_info()
    try:
        import resource

        # Linux counts in KiB.
        return max(info.rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    except ImportError:  # Windows has no resource module, but a peak of its own.
        return getattr(info, "peak_wset", info.rss)


def _digest(saved: dict[str, Json]) -> str:
    return hashlib.sha256(canonical_json(saved).encode()).hexdigest()
