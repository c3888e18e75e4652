"""How many sequences it takes to show that a signature is gone.

An eraser that truly removes leaves states that have nothing to do with the labels. So
states of a real network that was never taught a code get labels drawn at random, and
what is counted is how often every reader is equivalent to chance: that is the power of
the test behind "removes the signature", and no eraser can do better than this.
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.pga.simulated import row
from evidence.progress import Progress
from evidence.seeds import numpy_rng
from experiments.pga.states import VIEWS, pool_states
from probes.sweeps.membership_test import membership
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes
from testbeds.worlds.code_text import make_pools

MARGINS = (0.1, 0.15, 0.2)
NUMBERS = (20, 40, 70, 100, 140, 200, 280)
ENOUGH = 0.8
PERMUTATIONS = 39
"""They give the spread of each reader's AUC under exchanged labels, not a p."""


def equivalence(draws: int, root: Path, progress: Progress) -> dict:
    """Power of the equivalence test by number of sequences and margin.

    Args:
        draws: Of sequences and labels, a number.
        root: Where worlds are kept.
        progress: Shows draws.
    """
    world = build_codes(SIZES["small"], 0, root, twin=True, progress=progress)
    model, most = world.load("twin"), max(NUMBERS)
    phrases = make_pools({"any": 2 * most}, 1)["any"].prefixes
    # Depth 0 is left out: it holds no more than the letters of a prefix.
    states = {
        view: pool_states(model, phrases, world.trained_lead_ins, view).mean(2)[1:]
        for view in VIEWS
    }
    curve = []
    for n in NUMBERS:
        reaches = []
        with progress.task(f"equivalence, n = {n}", draws) as advance:
            for seed in range(draws):
                chosen = numpy_rng(seed, "equivalence", str(n)).permutation(2 * most)
                rows = torch.from_numpy(chosen[: 2 * n])
                found = membership(
                    {view: table[:, rows] for view, table in states.items()},
                    np.repeat([1, 0], n),
                    n_permutations=PERMUTATIONS,
                    seed=seed,
                )
                reaches.append(float(np.abs(found.interval() - 0.5).max()))
                advance(1)
        power = {f"{m:g}": float(np.mean(np.array(reaches) < m)) for m in MARGINS}
        curve.append(
            {
                "n": n,
                "draws": draws,
                "readers": int(found.auc.size),  # pyright: ignore
                "reach": float(np.median(reaches)),
                "power": power,
            }
        )
    return {"rows": equivalence_rows(curve), "curve": curve}


def equivalence_rows(curve: list[dict]) -> list[dict]:
    """By margin the number of sequences that shows it four times in five."""
    rows = []
    for margin in MARGINS:
        enough = [e["n"] for e in curve if e["power"][f"{margin:g}"] >= ENOUGH]
        if not enough:
            continue
        rows.append(
            row(
                f"sequences a class of which all readers are shown to be within "
                f"{margin:g} of chance, where nothing is there, with power {ENOUGH:g}",
                min(enough),
                None,
                "<=",
                f"the least of {', '.join(str(e['n']) for e in curve)}",
                curve[0]["draws"],
                unit="sequences",
            )
        )
    return rows
