"""Where is what an eraser leaves? The battery's best AUC by view and depth.

The alignments work on the last sign's state; the battery also reads the mean over all
signs. One eraser, the one that comes closest at an allowed cost, beside the original
and the network that was never taught a code.
"""

from pathlib import Path

import numpy as np

from benchmarks.pga.curve import NEVER, settings
from benchmarks.pga.worlds import EPOCHS, SHARES
from evidence.progress import Progress
from experiments.pga.config import make_config
from experiments.pga.erasers import Erased
from experiments.pga.run import Experiment
from experiments.pga.states import VIEWS
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes

SIZE, SEEDS = "two_hundred", (0, 1, 2)
CLOSEST = "adversarial pga, weight 1"


def views(root: Path, progress: Progress) -> dict:
    """Best AUC of seven families by model, seed, view and depth.

    Args:
        root: Where worlds are kept; those that were measured elsewhere are found there.
        progress: Shows seeds.
    """
    points = []
    with progress.task("views", len(SEEDS)) as advance:
        for seed in SEEDS:
            config = make_config(
                {
                    "size": SIZE,
                    "seed": seed,
                    "permutations": 199,
                    "erase_share": SHARES[SIZE],
                }
            )
            world = build_codes(SIZES[SIZE], seed, root, twin=True, progress=progress)
            run = Experiment(config, world, progress)
            for name, erased in (
                ("original", Erased(run.load(), {}, {})),
                (NEVER, Erased(run.load("twin"), {}, {})),
                (CLOSEST, settings(EPOCHS)[CLOSEST](run)),
            ):
                found = run.sound_scores(erased)
                best = np.asarray(found["auc"]).max(1)
                points += [
                    {
                        "model": name,
                        "seed": seed,
                        "view": view,
                        "auc": best[place].tolist(),
                        "band": found["band"],
                    }
                    for place, view in enumerate(VIEWS)
                ]
            advance(1)
    return {"rows": [], "points": points}


def views_text(part: dict) -> str:
    """A table: one row a model and view, seeds side by side."""
    points = part["points"]
    depths = range(len(points[0]["auc"]))
    text = TEXT.format(
        band=max(each["band"] for each in points),
        heads=" | ".join(f"depth {depth}" for depth in depths),
        rule="---|" * (2 + len(depths)),
    )
    for name, view in dict.fromkeys((p["model"], p["view"]) for p in points):
        mine = [p["auc"] for p in points if (p["model"], p["view"]) == (name, view)]
        cells = [" ".join(f"{each[depth]:.2f}" for each in mine) for depth in depths]
        text += f"| {name} | {view} | {' | '.join(cells)} |\n"
    return text


TEXT = """
### Where it is left

Best AUC of the seven families, by view and depth, on 200 + 200 keys, seeds side by
side; over all columns the null's 95 % is at most {band:.2f}. The eraser shown comes
closest among the settings whose cost is allowed. The alignments see the last sign's
state, the battery also the mean over all signs.

| model | view | {heads} |
|{rule}
"""
