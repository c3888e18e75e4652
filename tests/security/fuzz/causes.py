"""Bad outcomes grouped by their cause, so that one mend is one line."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|0x[0-9a-f]+|-?\d[\d.,e+-]*|/[^\s:]+")


def causes(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One dict a cause, the most frequent first: fault, kinds, said, frame, example.

    Args:
        found: Rows of a log, as ``benchmarks/suites/bad_inputs.py`` keeps them.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = defaultdict(list)
    for row in found:
        for fault in row["faults"]:
            message = row["details"][fault]
            # A place in the code is a cause; else what was said is.
            shape = "" if row["frame"] else _VARIABLE.sub("*", message)[:80]
            groups[fault, shape, row["frame"]].append(row)
    rows = [
        {
            "fault": fault,
            "count": len(members),
            "kinds": sorted({each["kind"] for each in members}),
            "said": min((each["details"][fault] for each in members), key=len),
            "frame": frame,
            "case": min((each["case"] for each in members), key=len),
        }
        for (fault, _, frame), members in groups.items()
    ]
    return sorted(rows, key=lambda row: (row["fault"], -row["count"]))


def page(rows: Iterable[Mapping[str, Any]]) -> str:
    """The causes as Markdown, a heading a fault."""
    lines, last = [], ""
    for row in rows:
        if row["fault"] != last:
            last = row["fault"]
            lines += ["", f"## {last}", ""]
        message = row["said"].replace("\n", " ").strip()[:200]
        lines += [
            f"- {row['count']} x `{row['frame'] or 'no frame'}`: {message}",
            f"  ({', '.join(row['kinds'])})",
            f"  `{row['case'][:500]}`",
        ]
    return "\n".join(lines) + "\n"
