"""The permuted floor on models of known state: questions that name nobody to be renamed."""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from audits.run.api import audit
from capture.checkpoints.cache import cache_root
from capture.data.items import ItemSet, read_items
from evidence.progress import Progress
from testbeds.zoo.build import build_zoo

SEEDS = (0, 1, 2)
RETRAINED = ("twin", "retrain_1")
SUPPRESSED = ("last_block_relabel",)


@dataclass(frozen=True)
class Verdict:
    """The verdict on one model of the zoo."""

    seed: int
    kind: str
    verdict: str

    @property
    def retrained(self) -> bool:
        """Whether the model never knew the forget set."""
        return self.kind in RETRAINED


def verdicts(progress: Progress) -> list[Verdict]:
    """Audits of retrains and of a suppression, seed by seed."""
    return list(_verdicts(progress))


def _verdicts(progress: Progress) -> Iterator[Verdict]:
    kinds = (*RETRAINED, *SUPPRESSED)
    made = build_zoo(
        cache_root() / "floors", world="bios", seeds=SEEDS, only=kinds, progress=progress
    )
    for specimen in made:
        world = specimen.world
        forget, retain = (_anonymous(read_items(path)) for path in (world.forget, world.retain))
        with tempfile.TemporaryDirectory() as out:
            done = audit(world.original, specimen.model, forget, retain, Path(out))
        if done.document["verdict"]["floor"] != "permuted":
            raise SystemExit("the floor is not the permuted one")
        yield Verdict(specimen.seed, specimen.kind, done.verdict)


def _anonymous(items: ItemSet) -> ItemSet:
    """The items with entities that no prompt names."""
    hidden = (
        replace(item, entity=f"about-{hashlib.sha256(item.entity.encode()).hexdigest()[:8]}")
        for item in items
    )
    return ItemSet(tuple(hidden), items.name)
