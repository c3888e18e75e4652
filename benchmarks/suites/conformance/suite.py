"""Every public function on every kind of live model: right, or refused in one sentence.

python -m benchmarks conformance
"""

import json
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import ROOT, Row, at_least, at_most, row
from benchmarks.harness.runner import Run, Suite
from benchmarks.suites.conformance.calls import BY_ROWS, IDS, IN_CONTEXT, ROWS
from benchmarks.suites.conformance.models import FAMILIES, KINDS, base_model, live, own_call
from capture.data.sequences import pad
from evidence.errors import InputError

PADDINGS = ("right", "left")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Largest difference from the plain model, relative to the largest value: rounding of other kernels.
TOLERANCE = {"float32": 1e-3, "bfloat16": 6e-2}
RIGHT, REFUSED, WRONG, RAW = "right", "refused", "silently wrong", "another error"


@dataclass(frozen=True)
class Cell:
    """One function on one kind of model.

    Attributes:
        error: Largest difference, relative to the largest value; None if there is no result.
        outcome: "right", "refused", "silently wrong" or "another error".
        sentence: The refusal, or the error.
    """

    function: str
    kind: str
    family: str
    padding: str
    dtype: str
    outcome: str
    error: float | None = None
    sentence: str = ""


def padded_rows(padding: str) -> dict[str, Tensor]:
    """The rows as the output of a tokenizer."""
    batch = pad(ROWS)
    ids, mask = batch.input_ids, batch.attention_mask
    if padding == "left":
        for number, row_ids in enumerate(IDS):
            ids[number] = ids[number].roll(ids.shape[1] - len(row_ids))
            mask[number] = mask[number].roll(mask.shape[1] - len(row_ids))
    return {"input_ids": ids, "attention_mask": mask}


def given_rows(function: str, padding: str) -> Any:
    """Rows with answers where a function needs them; a tokenizer's output otherwise."""
    plain = ("capture_activations", "patch, one", "steer, last position", "loss_recovered")
    return padded_rows(padding) if function.startswith(plain) else ROWS


def call(function: str, model: Any, kind: str, padding: str) -> Any:
    """The result of a function on a live model."""
    if function in BY_ROWS:
        return BY_ROWS[function](model, given_rows(function, padding))
    inputs = padded_rows(padding)
    mask = inputs["attention_mask"]
    inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    return IN_CONTEXT[function](model, lambda: own_call(model, kind, inputs), mask.bool())


@cache
def reference(function: str, family: str, dtype: str) -> np.ndarray:
    """What the plain model gives, on rows padded on the right."""
    model = base_model(family, DTYPES[dtype])
    if function in IN_CONTEXT:
        return _one_by_one(function, model)
    return np.asarray(BY_ROWS[function](model, ROWS), dtype=float)


def _one_by_one(function: str, model: Any) -> np.ndarray:
    """The user's call on each row alone, unpadded."""
    parts = []
    for ids in IDS:
        inputs = {"input_ids": torch.tensor([ids])}
        real = torch.ones(1, len(ids), dtype=torch.bool)

        def run(inputs: dict[str, Tensor] = inputs) -> Tensor:
            return model(**inputs).logits

        parts.append(np.asarray(IN_CONTEXT[function](model, run, real)))
    if function == "record, own call":  # two sites below one another
        halves = [np.split(part, 2) for part in parts]
        return np.concatenate([half[site] for site in (0, 1) for half in halves])
    return np.concatenate(parts)


def cell(function: str, kind: str, family: str, padding: str, dtype: str) -> Cell | None:
    """One cell of the table; None if there is no such model."""
    about = (function, kind, family, padding, dtype)
    with warnings.catch_warnings(), live(kind, base_model(family, DTYPES[dtype])) as model:
        warnings.simplefilter("ignore")
        if model is None:
            return None
        expected = reference(function, family, dtype)
        try:
            got = np.asarray(call(function, model, kind, padding), dtype=float)
        except InputError as error:
            return Cell(*about, REFUSED, sentence=str(error))
        except Exception as error:
            return Cell(*about, RAW, sentence=f"{type(error).__name__}: {error}"[:300])
    if got.shape != expected.shape:
        return Cell(*about, WRONG, sentence=f"shape {got.shape}, not {expected.shape}")
    error = float(np.abs(got - expected).max() / max(np.abs(expected).max(), 1e-12))
    return Cell(*about, RIGHT if error <= TOLERANCE[dtype] else WRONG, error)


def cells(
    functions: Sequence[str], kinds: Sequence[str], families: Sequence[str], dtypes: Sequence[str]
) -> Iterator[Cell]:
    """The cells of a table."""
    for function in functions:
        for kind in kinds:
            for family in families:
                for padding in PADDINGS:
                    for dtype in dtypes:
                        found = cell(function, kind, family, padding, dtype)
                        if found is not None:
                            yield found


def context() -> dict[str, Any]:
    """Variables of the page."""
    kept = results("conformance")
    found = [Cell(**each) for each in kept.get("cells", [])]
    by_place: dict[tuple[str, str], list[Cell]] = {}
    for each in found:
        by_place.setdefault((each.function, each.kind), []).append(each)
    refusals = Counter(
        (each.function, each.kind, re.sub(r"\s+", " ", each.sentence))
        for each in found
        if each.outcome == REFUSED
    )
    return kept | {
        "functions": list(dict.fromkeys(each.function for each in found)),
        "kinds": [kind for kind in KINDS if any(each.kind == kind for each in found)],
        "shown": {place: _shown(group) for place, group in by_place.items()},
        "refusals": sorted(refusals),
        "tolerance": TOLERANCE,
    }


def _shown(group: Sequence[Cell]) -> str:
    outcomes = {each.outcome for each in group}
    for bad in (WRONG, RAW):
        if bad in outcomes:
            return bad
    if outcomes == {REFUSED}:
        return REFUSED
    errors = {
        dtype: [each.error for each in group if each.dtype == dtype and each.error is not None]
        for dtype in DTYPES
    }
    text = " / ".join(f"{max(each):.0e}" for each in errors.values() if each)
    return text + (" (some refused)" if REFUSED in outcomes else "")


SUITE = Suite(
    "conformance",
    "Public functions on live models: right within a stated error, or refused in one sentence.",
    "conformance",
    pages=(Page("conformance", context),),
    threads=1,
)


@SUITE.part()
def table(run: Run) -> Iterator[Row]:
    """Every function, kind of model, family, padding and precision."""
    found = list(cells([*BY_ROWS, *IN_CONTEXT], list(KINDS), FAMILIES, list(DTYPES)))
    run.payload["cells"] = [asdict(each) for each in found]
    yield from rows_of(found)


@SUITE.part()
def tasks(run: Run) -> Iterator[Row]:
    """Ten tasks in the code of other libraries and in ours: lines, and the largest difference."""
    codes = {number: blocks for number, blocks in _task_blocks().items() if number}
    longer = [number for number, blocks in codes.items() if _extra_lines(blocks) > 0]
    yield row("tasks that need more lines than the shortest peer", len(longer), at_most(0), n=10)
    command = (sys.executable, "-W", "ignore", "-m", "tests.repository.library_tasks")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            (*command, folder), cwd=ROOT, capture_output=True, encoding="utf-8", check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    for library in ("TransformerLens", "nnsight", "SAELens"):
        errors = [each[library] for each in found.values() if library in each]
        figure = f"largest relative difference in tasks, {library}"
        yield row(figure, max(errors), at_most(3e-5), "", library, len(errors))


def _task_blocks() -> dict[int, dict[str, str]]:
    """Task to library to code, from the page."""
    text = (ROOT / "docs" / "guide" / "from-other-libraries.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (\d+)\. .+$", text, flags=re.MULTILINE)
    block = re.compile(r"^```python\n# ([\w ]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    pairs = zip(parts[1::2], parts[2::2], strict=True)
    return {int(number): dict(block.findall(code)) for number, code in pairs}


def _extra_lines(blocks: dict[str, str]) -> int:
    """Lines of ours beyond those of the shortest peer."""
    counts = {
        name: len([c for c in code.splitlines() if c.strip()]) for name, code in blocks.items()
    }
    return counts.pop("exhume") - min(counts.values())


def rows_of(found: Sequence[Cell]) -> Iterator[Row]:
    """The figures of a table."""
    counts = Counter(each.outcome for each in found)
    n = len(found)
    yield row("silently wrong", counts[WRONG], at_most(0), "cells", n=n)
    yield row("errors that are no refusal", counts[RAW], at_most(0), "cells", n=n)
    yield row("right", counts[RIGHT], at_least(), "cells", n=n)
    yield row("refused in one sentence", counts[REFUSED], at_most(), "cells", n=n)
    for dtype, most in TOLERANCE.items():
        errors = [each.error for each in found if each.dtype == dtype and each.outcome == RIGHT]
        largest = max((each for each in errors if each is not None), default=0.0)
        yield row(
            f"largest relative error, {dtype}",
            largest,
            at_most(most),
            "",
            "plain model",
            len(errors),
        )
