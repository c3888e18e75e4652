"""What two audits of one pair must share: all of it, or all of it up to rounding."""

import json
import lzma
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audits.run.upgrade import upgrade

AUDITS = Path(__file__).with_name("audits.json.xz")
AUDITS_1_1 = Path(__file__).with_name("audits_1_1.json.xz")
"""The same cases in schema 1.1, written before the front transplant: what the upgrade reads."""
CORPUS = Path(__file__).with_name("corpus.npz")
SHOWN = 12
"""Differences shown of each document."""
DROPPED = ("code_sha256", "versions", "hardware")
"""Parts of the manifest that differ by commit or machine."""
FREE = ("/preflight/free_text/", "/details/generation/")
"""What a model writes freely: one word that falls otherwise changes all after it."""
SMALL = 0.01
CLOSE, STRAY, FAR = 1e-3, 0.1, 0.15
"""On another processor a number moves by less than ``CLOSE`` of itself or of ``SMALL``,
but for a share ``STRAY`` of an audit's; none moves by ``FAR`` of itself or of 1. Seen
with the instructions of processors of 2008 and 2013: 3 % and 0.05, most of it at sites
that hold no difference between prompts, where rounding breaks ties."""
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d+\.\d+(?:e[-+]?\d+)?|\d+(?= ?%))(?![\w.]*\w)")
"""Decimals and percentages in sentences; other integers count something."""


def canonical(document: dict[str, Any]) -> dict[str, Any]:
    """The document without what no two runs share: time, code, machine, folders."""
    kept = {key: value for key, value in document.items() if key != "runtime"}
    manifest = {k: v for k, v in kept["manifest"].items() if k not in DROPPED}
    models = [each | {"source": Path(each["source"]).name} for each in manifest["models"]]
    return kept | {"manifest": manifest | {"models": models}}


def as_text(document: dict[str, Any]) -> str:
    """A canonical document as it is compared byte for byte."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def load_audits(path: Path = AUDITS) -> dict[str, Any]:
    """Kept canonical documents by name of their case, in the schema in which they were made."""
    return json.loads(lzma.decompress(path.read_bytes()))


def kept_audits(path: Path = AUDITS) -> dict[str, Any]:
    """The same in today's schema."""
    return {name: upgrade(document) for name, document in load_audits(path).items()}


def audits_apart(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[str]]:
    """Audits that are not byte for byte the same, each with the places where it differs.

    Args:
        before: Canonical documents of today's schema by name.
        after: The same cases.
    """
    wrong = {}
    for name, document in before.items():
        if as_text(document) == as_text(after[name]):
            continue
        places = [
            f"  {place}: {short(one)} became {short(other)}"
            for place, one, other in apart(document, after[name])
        ]
        wrong[name] = [f"{name}: {len(places)} places differ", *places[:SHOWN]]
    return wrong


def save_audits(documents: dict[str, Any], path: Path = AUDITS) -> None:
    """Keep them; equal documents give equal bytes."""
    text = json.dumps(documents, sort_keys=True, ensure_ascii=False)
    path.write_bytes(lzma.compress(text.encode(), preset=9))


def apart(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every place where two documents differ, and what stands there in each.

    Entries with names, such as axes and controls, are places by name.
    """
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            missing = "(missing)"
            if key not in one or key not in other:
                yield f"{place}/{key}", one.get(key, missing), other.get(key, missing)
            else:
                yield from apart(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{place}/(length)", len(one), len(other)
        for number, (mine, its) in enumerate(zip(one, other, strict=False)):
            name = mine.get("name", number) if isinstance(mine, dict) else number
            yield from apart(mine, its, f"{place}/{name}")
    elif type(one) is not type(other) or one != other:
        yield place, one, other


def beyond_rounding(found: Any, kept: Any) -> list[str]:
    """What differs by more than another processor's rounding explains, in words.

    Statuses, verdicts, names and counts have to be the same; numbers, also those in
    sentences, nearly; what a model writes freely may be anything.
    """
    wrong, stray = [], []
    for place, now, before in apart(found, kept):
        if any(part in place for part in FREE):
            continue
        words = f"{place}: {short(now)}, kept {short(before)}"
        if _distance(now, before, SMALL) > CLOSE:
            stray.append(words)
        if _distance(now, before, 1.0) > FAR:
            wrong.append(words)
    total = sum(1 for _ in _numbers(kept))
    if len(stray) > STRAY * total:
        head = f"{len(stray)} of {total} numbers differ by more than {CLOSE:g}:"
        wrong += [head, *stray]
    return wrong


def _distance(one: Any, other: Any, least: float) -> float:
    """Of numbers as a share of themselves or of ``least``; else infinite or 0."""
    if isinstance(one, str) and isinstance(other, str):
        if _NUMBER.sub("0", one) != _NUMBER.sub("0", other):
            return math.inf
        pairs = zip(_values(one), _values(other), strict=True)
        return max((_gap(a, b, least, last) for (a, last), (b, _) in pairs), default=0.0)
    if isinstance(one, float) and isinstance(other, float):
        return _gap(one, other, least, 0.0)
    return math.inf


def _gap(one: float, other: float, least: float, rounding: float) -> float:
    gap = max(abs(one - other) - rounding, 0.0)
    return gap / max(abs(one), abs(other), least)


def _values(sentence: str) -> Iterator[tuple[float, float]]:
    """Each number in a sentence, and what its last digit counts."""
    for match in _NUMBER.finditer(sentence):
        unit = 0.01 if sentence[match.end() :].lstrip().startswith("%") else 1.0
        digits = match[0].partition("e")[0].partition(".")[2]
        yield float(match[0]) * unit, 10.0 ** -len(digits) * unit


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _numbers(each)


def short(value: Any) -> str:
    """A value in at most eighty signs."""
    words = value if isinstance(value, str) else json.dumps(value)
    return words if len(words) <= 80 else f"{words[:77]}..."
