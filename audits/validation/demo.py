"""``exhume demo`` in Python: unlearn real capitals from a real model, then audit it."""

from pathlib import Path

from audits.output.outputs import hold_folder
from audits.run.api import Audit, audit
from capture.checkpoints.open import open_checkpoint
from evidence.progress import AUTO, Progress, as_progress
from evidence.seeds import check_seed
from evidence.storage.regular_files import as_path
from evidence.storage.removal import MODEL_FILES, delete_owned_folder
from testbeds.planted import plant
from testbeds.worlds.capitals import capital_items
from testbeds.worlds.smollm2 import fetch_smollm2

METHOD = "npo"
PARTS = ITEMS, UNLEARNED, AUDIT = "items", "unlearned", "audit"


def run_demo(
    out: Path | str, *, seed: int = 0, fresh: bool = False, progress: Progress = AUTO
) -> Audit:
    """Unlearn some capitals from SmolLM2-135M-Instruct with NPO, and audit the pair.

    Args:
        out: Folder for the items, the unlearned model and the audit; the same call resumes
            there.
        seed: Of the choice of capitals and of every random choice of the audit.
        fresh: Start over.

    Raises:
        InputError: the model cannot be downloaded, or the folder holds something else.
    """
    root = as_path(out, "the output folder")
    check_seed(seed)

    def clear() -> None:
        if (root / UNLEARNED).exists():
            delete_owned_folder(root / UNLEARNED, MODEL_FILES)

    settings = {"method": METHOD, "seed": seed}
    with (
        hold_folder(root, "demo", PARTS, settings, clear if fresh else None),
        as_progress(progress).task("demo", 4) as advance,
    ):
        original = fetch_smollm2(progress=progress)
        advance(1)
        world = capital_items(
            open_checkpoint(original, progress=progress), seed=seed, progress=progress
        )
        items = {"forget": world.forget, "retain": world.retain, "never_taught": world.never_taught}
        for name, item_set in items.items():
            item_set.to_jsonl(root / ITEMS / f"{name}.jsonl")
        as_progress(progress).note("demo: the items are written")
        advance(1)
        unlearned = plant(world, METHOD, seed=seed, out=root / UNLEARNED, progress=progress)
        as_progress(progress).note("demo: the unlearned model is made")
        advance(1)
        done = audit(
            original,
            unlearned,
            root / ITEMS / "forget.jsonl",
            root / ITEMS / "retain.jsonl",
            root / AUDIT,
            never_taught=root / ITEMS / "never_taught.jsonl",
            profile="quick",
            seed=seed,
            fresh=fresh,
            progress=progress,
        )
        advance(1)
    return done
