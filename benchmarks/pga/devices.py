"""Do results depend on the device? The curve's points again, on the CPU.

Two trainings of an original part ways in their last digits and end as two networks. So
this starts from the very models of a world that was made on a GPU: the same erasers are
trained again on the CPU, and the same battery is held against what came back.
"""

from pathlib import Path

from benchmarks.pga.curve import NEVER, point, settings
from benchmarks.pga.simulated import row
from benchmarks.pga.worlds import EPOCHS
from evidence.errors import InputError
from evidence.progress import Progress
from experiments.pga.config import make_config
from experiments.pga.erasers import Erased
from experiments.pga.run import Experiment
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes

AGAIN = (
    "pga, weight 1",
    "isotropic, weight 1",
    "gradient ascent",
    "leace, every depth",
    "md-pga, k = 2",
)
CLOSE = 0.01


def devices(root: Path, there: dict | None, progress: Progress) -> dict:
    """Largest differences between points of forty keys, seed 0, and the CPU's.

    Args:
        root: Holds the world as the GPU made it.
        there: The part ``curve:forty:0`` as measured there.
        progress: Shows models.

    Raises:
        InputError: the points or the world are not a GPU's.
    """
    config = make_config({"size": "forty", "permutations": 199})
    if there is None or there.get("device") != "cuda":
        raise InputError(
            "there is nothing to compare with",
            expected="the part curve:forty:0, measured on a GPU",
            fix="Take one in with --take first",
        )
    world = build_codes(SIZES["forty"], 0, root, twin=True, progress=progress)
    if world.card().get("device") != "cuda":
        raise InputError(
            "this world was not made on a GPU",
            expected="the models the points are of",
            got=str(world.root),
            fix="Point --root at the worlds that came with them",
        )
    run = Experiment(config, world, progress)
    original = run.sound_scores(Erased(run.load(), {}, {}))
    twin = run.sound_scores(Erased(run.load("twin"), {}, {}))
    here = {
        "original": point("original", original, original, None, config),
        NEVER: point(NEVER, twin, original, None, config),
    }
    with progress.task("again on the CPU", len(AGAIN)) as advance:
        for name in AGAIN:
            erased = settings(EPOCHS)[name](run)
            cost = run.recall_and_utility(erased, run.seen)
            here[name] = point(name, run.sound_scores(erased), original, cost, config)
            advance(1)
    known = {each["eraser"]: each for each in there["points"]}
    rows = []
    for words, key, relative in (
        ("the best AUC", "best", False),
        ("a p", "p", False),
        ("recall", "recall", False),
        ("perplexity, relative", "ratio", True),
    ):
        apart = [
            abs(mine[key] - known[name][key]) / (known[name][key] if relative else 1)
            for name, mine in here.items()
            if key in mine
        ]
        rows.append(
            row(
                f"GPU against CPU from the same models, forty keys: largest difference "
                f"of {words}",
                max(apart),
                CLOSE,
                "<=",
                there["machine"]["cuda"],
                len(apart),
                unit="difference",
            )
        )
    return {"rows": rows, "points": list(here.values())}
