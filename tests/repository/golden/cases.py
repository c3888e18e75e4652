"""Which audits are kept, as data that a tree of any layout can run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Named here, so that an eleventh axis does not change what is kept.
AXES = (
    "behaviour",
    "decodability",
    "causal_depth",
    "front_transplant",
    "quantization",
    "relearning",
    "concept",
    "restoration",
    "circuit",
    "membership",
)
ITEMS = {
    "bios": ("forget.jsonl", "retain.jsonl", "never_taught.jsonl"),
    "bios_wide": ("forget.jsonl", "retain.jsonl", "never_taught.jsonl"),
    "digits": ("forget_test.npz", "retain_test.npz", "never_taught.npz"),
}
"""Files of each packed world: what to forget, to retain, and what nobody was taught."""


@dataclass(frozen=True)
class Case:
    """One audit of packed models.

    Attributes:
        world: One of ``ITEMS``.
        candidate: Model audited against the world's original.
        reference: Model given as retrained without the forget set.
        invented: Whether the audit has to invent what nobody was taught.
        profile: Its budget.
        quick: Whether ``make test`` runs it.
    """

    world: str
    candidate: str
    reference: str | None = None
    invented: bool = False
    profile: str = "quick"
    quick: bool = False

    @property
    def name(self) -> str:
        """Key of its document."""
        floor = "never_taught" if self.reference is None else "reference"
        words = [self.world, self.candidate, floor]
        words += ["invented"] * self.invented
        words += [self.profile] * (self.profile != "quick")
        return "-".join(words)

    def arguments(self, worlds: Path, out: Path) -> dict[str, Any]:
        """Arguments of ``audit``, as JSON has them."""
        here = worlds / self.world
        forget, retain, never = (str(here / name) for name in ITEMS[self.world])
        return {
            "original": str(here / "original"),
            "unlearned": str(here / self.candidate),
            "forget": forget,
            "retain": retain,
            "out": str(out / self.name),
            "reference": [str(here / self.reference)] if self.reference else [],
            "never_taught": None if self.invented else never,
            "profile": self.profile,
            "axes": AXES,
            "seed": 0,
            "device": "cpu",
        }


CASES = (
    Case("bios", "original"),
    Case("bios", "original", "twin"),
    Case("bios", "last_block_relabel", quick=True),
    Case("bios", "last_block_relabel", "twin"),
    Case("bios", "twin"),
    Case("bios", "twin", "retrain_1"),
    Case("bios", "collapse"),
    Case("bios", "collapse", "twin"),
    # Looks inside a damaged model, and has every quantization scheme.
    Case("bios", "collapse", profile="standard"),
    # Wide enough for the membership axis to have power.
    Case("bios_wide", "last_block_relabel", invented=True),
    Case("digits", "original"),
    Case("digits", "head_only", quick=True),
    Case("digits", "head_only", "twin"),
    Case("digits", "logit_mask"),
    Case("digits", "logit_mask", "twin"),
    Case("digits", "class_direction", invented=True),
    Case("digits", "class_direction", "twin"),
    Case("digits", "twin"),
    Case("digits", "twin", "retrain_1"),
)
