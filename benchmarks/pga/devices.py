"""Do results depend on the device? The curve's points again, on the CPU.

Two trainings of an original part ways in their last digits and end as two networks. So
this starts from the very models of a world that was made on a GPU: the same erasers are
trained again on the CPU, and the same battery is held against what came back.
"""

from collections.abc import Iterator

from benchmarks.harness.results import Row, at_most, row
from benchmarks.harness.runner import Run
from benchmarks.pga.curve import experiment, references, tried_point, unmodified
from evidence.errors import InputError

AGAIN = (
    "pga, weight 1",
    "isotropic, weight 1",
    "gradient ascent",
    "leace, every depth",
    "md-pga, k = 2",
)
CLOSE = 0.01


def devices(run: Run) -> Iterator[Row]:
    """Points of a GPU again, on the CPU: the largest differences.

    Raises:
        InputError: the points or the world are not a GPU's.
    """
    there = run.document.get("parts", {}).get("curve:forty:0", {})
    if there.get("device") != "cuda":
        raise InputError(
            "there is nothing to compare with",
            expected="the part curve:forty:0, measured on a GPU",
            fix="Take one in with --only others --source first",
        )
    tried = experiment(run, "forty", 0)
    if tried.world.card().get("device") != "cuda":
        raise InputError(
            "this world was not made on a GPU",
            expected="the models the points are of",
            got=str(tried.world.root),
            fix="Point --root at the worlds that came with them",
        )
    original = tried.sound_scores(unmodified(tried))
    here = references(tried, original)
    with run.progress.task("again on the CPU", len(AGAIN)) as advance:
        for name in AGAIN:
            here[name] = tried_point(tried, name, original)
            advance(1)
    run.payload["points"] = list(here.values())
    known = {each["eraser"]: each for each in there["points"]}
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
        figure = f"GPU against CPU from the same models, forty keys: largest difference of {words}"
        peer, n = there["machine"]["cuda"], len(apart)
        yield row(figure, max(apart), at_most(CLOSE), "difference", peer, n)
