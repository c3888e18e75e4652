"""How a row's target is written in every page."""

from collections.abc import Mapping
from typing import Any


def target_of(row: Mapping[str, Any]) -> str:
    """What was wanted of a row, and whether it is so: ">= 3 (met)", or "none"."""
    if row["target"] is None:
        return "none"
    above = row["value"] >= row["target"]
    met = above if row["sense"] == ">=" else row["value"] <= row["target"]
    said = "(met)" if met else "(**not met**)"
    return f"{row['sense']} {row['target']:.5g} {said}"
