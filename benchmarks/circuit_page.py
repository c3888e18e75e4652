"""docs/circuits.md, from the results of ``benchmarks.circuits``."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "circuits.md"


def page(document: dict) -> str:
    return ""
