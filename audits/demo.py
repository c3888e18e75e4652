"""``exhume demo`` in Python: forget real capitals in a real model, then audit it."""

import shutil
from pathlib import Path

from audits.audit import Audit, audit
from capture.models import open_checkpoint
from evidence.progress import SILENT, Progress
from evidence.regular import as_path
from evidence.seeds import check_seed
from testbeds.capitals import capital_items
from testbeds.planted import plant
from testbeds.smol import fetch

METHOD = "npo"


def run_demo(
    out: Path | str,
    *,
    seed: int = 0,
    fresh: bool = False,
    progress: Progress = SILENT,
) -> Audit:
    """Unlearn some capitals from SmolLM2-135M-Instruct with NPO, and audit the pair.

    Args:
        out: Folder for the items, the unlearned model and the audit. The same call
            resumes there.
        seed: Which capitals are forgotten, and every random choice of the audit.
        fresh: Start over.
        progress: Where to show progress.

    Raises:
        InputError: the model cannot be fetched, or the folder holds something else.
    """
    root = as_path(out, "the output folder")
    check_seed(seed)
    with progress.task("demo", 4) as advance:
        original = fetch(progress=progress)
        advance(1)
        world = capital_items(
            open_checkpoint(original, progress=progress), seed=seed, progress=progress
        )
        items = {
            "forget": world.forget,
            "retain": world.retain,
            "never_taught": world.never_taught,
        }
        for name, each in items.items():
            each.to_jsonl(root / "items" / f"{name}.jsonl")
        advance(1)
        if fresh:
            shutil.rmtree(root / "unlearned", ignore_errors=True)
        unlearned = plant(
            world, METHOD, seed=seed, out=root / "unlearned", progress=progress
        )
        advance(1)
        done = audit(
            original,
            unlearned,
            root / "items" / "forget.jsonl",
            root / "items" / "retain.jsonl",
            root / "audit",
            never_taught=root / "items" / "never_taught.jsonl",
            profile="quick",
            seed=seed,
            fresh=fresh,
            progress=progress,
        )
        advance(1)
    return done
