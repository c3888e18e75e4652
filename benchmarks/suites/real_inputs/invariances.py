"""The same facts in other shapes: the items must be the same, and so must the verdict."""

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from audits.run.api import Audit, audit
from capture.checkpoints.cache import cache_root
from capture.data.items import Item, ItemSet, read_items
from evidence.seeds import numpy_rng
from testbeds.zoo.build import build_zoo

PARTS = ("forget", "retain", "never_taught")
RENAMED = {"prompt": "text", "answer": "label", "entity": "person", "relation": "kind"}
Write = Callable[[list[Item], Path], Path]


def check() -> dict[str, bool]:
    """Name of each change of shape to whether items, or the verdict, stay the same."""
    (specimen,) = build_zoo(
        cache_root() / "floors", world="bios", seeds=[0], only=["last_block_relabel"]
    )
    world = specimen.world
    given = {name: read_items(getattr(world, name)) for name in PARTS}
    same: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def audited(
            name: str, paths: Mapping[str, Path], columns: Mapping[str, str] | None = None
        ) -> Audit:
            return audit(
                world.original,
                specimen.model,
                paths["forget"],
                paths["retain"],
                folder / f"audit-{name}",
                never_taught=paths["never_taught"],
                columns=columns,
                axes=("behaviour", "decodability", "relearning"),
            )

        def written(write: Write, name: str) -> dict[str, Path]:
            return {
                part: write(list(items), folder / f"{name}-{part}") for part, items in given.items()
            }

        first = audited("jsonl", written(as_jsonl, "jsonl"))
        for name, (write, columns) in SHAPES.items():
            paths = written(write, name)
            read = {part: read_items(path, columns=columns) for part, path in paths.items()}
            same[f"items of {name}"] = all(_equal(read[part], given[part]) for part in given)
        for name in ("csv", "parquet", "renamed columns"):
            write, columns = SHAPES[name]
            other = audited(name, written(write, name), columns)
            same[f"audit of {name}, byte for byte"] = _text(other) == _text(first)
        other = audited("shuffled rows", written(shuffled, "shuffled"))
        same["verdict of shuffled rows"] = other.verdict == first.verdict
    return same


def as_jsonl(items: list[Item], path: Path) -> Path:
    """One object a line."""
    path = path.with_suffix(".jsonl")
    ItemSet(tuple(items)).to_jsonl(path)
    return path


def shuffled(items: list[Item], path: Path) -> Path:
    """The same lines in another order."""
    order = numpy_rng(0, "shuffled rows").permutation(len(items))
    return as_jsonl([items[index] for index in order], path)


def as_json(items: list[Item], path: Path) -> Path:
    """One indented array."""
    path = path.with_suffix(".json")
    path.write_text(json.dumps([_fields(item) for item in items], indent=2), encoding="utf-8")
    return path


def as_columns(items: list[Item], path: Path) -> Path:
    """One object of lists."""
    path = path.with_suffix(".json")
    path.write_text(json.dumps(_frame(items).to_dict("list")), encoding="utf-8")
    return path


def as_gz(items: list[Item], path: Path) -> Path:
    """Compressed JSON Lines."""
    plain = as_jsonl(items, path)
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    return packed


def as_csv(items: list[Item], path: Path) -> Path:
    """Commas, with the lists as JSON."""
    path = path.with_suffix(".csv")
    frame = _frame(items)
    for name in ("alternatives", "paraphrases"):
        frame[name] = [json.dumps(list(value)) if len(value) else None for value in frame[name]]
    frame.to_csv(path, index=False)
    return path


def as_parquet(items: list[Item], path: Path) -> Path:
    """Parquet with columns of lists."""
    path = path.with_suffix(".parquet")
    _frame(items).to_parquet(path)
    return path


def as_renamed(items: list[Item], path: Path) -> Path:
    """Columns of other names, to be mapped."""
    path = path.with_suffix(".renamed.jsonl")
    rows = _frame(items).rename(columns=RENAMED).to_dict("records")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


SHAPES: dict[str, tuple[Write, Mapping[str, str] | None]] = {
    "json": (as_json, None),
    "columns": (as_columns, None),
    "compressed": (as_gz, None),
    "csv": (as_csv, None),
    "parquet": (as_parquet, None),
    "renamed columns": (as_renamed, RENAMED),
    "shuffled rows": (shuffled, None),
}


def _fields(item: Item) -> dict[str, object]:
    names = ("id", "entity", "relation", "prompt", "answer", "alternatives", "paraphrases")
    return {name: value for name, value in asdict(item).items() if name in names}


def _frame(items: list[Item]) -> pd.DataFrame:
    rows = [_fields(item) for item in items]
    return pd.DataFrame([{k: _plain(v) for k, v in row.items()} for row in rows])


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple | np.ndarray) else value


def _equal(read: ItemSet, given: ItemSet) -> bool:
    """Whether both sets hold the same items, in any order."""
    return sorted(map(repr, read)) == sorted(map(repr, given))


def _text(done: Audit) -> str:
    """The document without when and from which files it was made."""
    kept = {k: v for k, v in done.document.items() if k not in ("runtime", "manifest")}
    return json.dumps(kept, sort_keys=True)
