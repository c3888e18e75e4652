"""Where is what an eraser leaves? The battery's best AUC by view and depth.

The alignments work on the last sign's state; the battery also reads the mean over all
signs. One eraser, the one that comes closest at an allowed cost, beside the original
and the network that was never taught a code.
"""

from collections.abc import Iterator

import numpy as np

from benchmarks.harness.results import Row
from benchmarks.harness.runner import Run
from benchmarks.pga.curve import NEVER, experiment, settings, unmodified
from benchmarks.pga.worlds import EPOCHS, SHARES
from experiments.pga.states import VIEWS

SIZE, SEEDS = "two_hundred", (0, 1, 2)
CLOSEST = "adversarial pga, weight 1"


def views(run: Run) -> Iterator[Row]:
    """Where what an eraser leaves is found: best AUC by view and depth."""
    points = []
    with run.progress.task("views", len(SEEDS)) as advance:
        for seed in SEEDS:
            tried = experiment(run, SIZE, seed, SHARES[SIZE])
            for name, erased in (
                ("original", unmodified(tried)),
                (NEVER, unmodified(tried, "twin")),
                (CLOSEST, settings(EPOCHS)[CLOSEST](tried)),
            ):
                found = tried.sound_scores(erased)
                best = np.asarray(found["auc"]).max(1)
                about = {"model": name, "seed": seed, "band": found["band"]}
                points += [
                    about | {"view": view, "auc": best[place].tolist()}
                    for place, view in enumerate(VIEWS)
                ]
            advance(1)
    run.payload["points"] = points
    yield from ()
