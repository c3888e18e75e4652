"""How close does any eraser come? Utility and recall against the battery's best AUC.

Every setting sees a part of the keys; the others are what the battery of readers is
tried on. An eraser passes where recall is gone, perplexity stays within 1.05 times, no
clean code took a memorised one's place, and every reader that found the signature in
the original is equivalent to chance. Quadratic erasure is not among them: it must be
told of each row whether it was memorised.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pga.simulated import row
from evidence.progress import Progress
from experiments.pga.claims import LEVEL, YES, absence_outcome
from experiments.pga.config import PgaExperiment, make_config
from experiments.pga.erasers import Erased, edits_at_every_depth, erase, leace, md_edits
from experiments.pga.run import Experiment
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes

Make = Callable[[Experiment], Erased]
RECALL, UTILITY = 0.01, 1.05
NEVER = "never taught any code"


def _named(name: str, **more) -> Make:
    return lambda run: erase(name, run.load(), run.world, run.seen, **more)


def _md(k: int) -> Make:
    def make(run: Experiment) -> Erased:
        model = run.load()
        return Erased(model, md_edits(model, run.world, run.seen, k), {})

    return make


def _at_last(run: Experiment) -> Erased:
    """LEACE at the last depth alone."""
    model = run.load()
    edits = edits_at_every_depth(model, run.world, run.seen, leace)
    last = list(edits)[-1]
    return Erased(model, {last: edits[last]}, {})


def settings(epochs: int) -> dict[str, Make]:
    """Every eraser and strength that is tried."""
    found: dict[str, Make] = {}
    # Longer, where the alignment is strong enough to hide the signature.
    for name, short, long in (
        ("pga", (0.1, 1.0, 10.0), (1.0,)),
        ("isotropic", (0.1, 1.0, 10.0), (3.0, 10.0, 30.0)),
    ):
        found |= {
            f"{name}, weight {weight:g}": _named(
                name, epochs=epochs, align_weight=weight
            )
            for weight in short
        }
        found |= {
            f"{name}, weight {weight:g}, {4 * epochs} epochs": _named(
                name, epochs=4 * epochs, align_weight=weight
            )
            for weight in long
        }
    found["adversarial pga, weight 1"] = _named(
        "adversarial pga", epochs=epochs, align_weight=1.0
    )
    found |= {f"md-pga, k = {k}": _md(k) for k in (1, 2, 8)}
    found["leace, every depth"] = _named("leace")
    found["leace, last depth"] = _at_last
    found |= {name: _named(name) for name in ("gradient ascent", "npo", "idk")}
    return found


def curve(
    size: str,
    seed: int,
    root: Path,
    progress: Progress,
    *,
    epochs: int = 200,
    permutations: int = 199,
    share: float = 0.5,
    device: str = "cpu",
    shard: tuple[int, int] = (0, 1),
    done: Sequence[dict] = (),
    keep: Callable[[dict], None] = lambda found: None,
) -> dict:
    """Every setting's recall, utility and battery, and whether it passes.

    Args:
        size: Of the world.
        seed: Of the world and the experiment.
        root: Where worlds are kept.
        progress: Shows settings.
        epochs: Of the alignments.
        permutations: Of the battery's null.
        share: Of the keys that erasers see; the others are tested.
        device: Where models are trained.
        shard: This one of so many parts of the settings.
        done: Points that are there already.
        keep: Given what there is after every setting.
    """
    config = make_config(
        {
            "size": size,
            "seed": seed,
            "permutations": permutations,
            "erase_share": share,
            "device": device,
        }
    )
    world = build_codes(
        SIZES[size], seed, root, twin=True, device=config.device, progress=progress
    )
    run = Experiment(config, world, progress)
    original = run.sound_scores(Erased(run.load(), {}, {}))
    points = {each["eraser"]: each for each in done}
    tried = dict(list(settings(epochs).items())[shard[0] :: shard[1]])

    def found() -> dict:
        every = list(points.values())
        return {
            "rows": curve_rows(every, size, seed),
            "points": every,
            "size": size,
            "margin": config.margin,
            "share": share,
        }

    with progress.task("erasers", len(tried)) as advance:
        if NEVER not in points:
            twin = run.sound_scores(Erased(run.load("twin"), {}, {}))
            points["original"] = point("original", original, original, None, config)
            points[NEVER] = point(NEVER, twin, original, None, config)
        for name, make in tried.items():
            if name not in points:
                erased = make(run)
                points[name] = point(
                    name,
                    run.sound_scores(erased),
                    original,
                    run.recall_and_utility(erased, run.seen),
                    config,
                )
                keep(found())
            advance(1)
    return found()


def curve_rows(points: list[dict], size: str, seed: int) -> list[dict]:
    """How many pass, and how many would if silence were enough."""
    tried = [each for each in points if "ratio" in each]
    passing = [each["eraser"] for each in tried if each["passes"]]
    quiet = [each["eraser"] for each in tried if each["quiet"]]
    return [
        row(
            f"erasers that pass on codes, {size}, seed {seed}: recall under "
            f"{RECALL}, perplexity within {UTILITY} times, equivalent to chance",
            len(passing),
            1,
            ">=",
            ", ".join(passing) or "none",
            len(tried),
            seed=seed,
            unit="erasers",
        ),
        row(
            f"the same, {size}, seed {seed}, were not finding it enough",
            len(quiet),
            None,
            ">=",
            ", ".join(quiet) or "none",
            len(tried),
            seed=seed,
            unit="erasers",
        ),
    ]


def point(
    name: str,
    found: dict,
    original: dict,
    cost: dict | None,
    config: PgaExperiment,
) -> dict:
    """What the curve keeps of one setting.

    Args:
        name: Of the setting.
        found: Its battery.
        original: The original's.
        cost: Recall and utility; None for what is untouched.
        config: Of the experiment.
    """
    outcome, why = absence_outcome(found, original, config.margin)
    told = np.asarray(original["p_column"]) <= LEVEL
    kept = {
        "eraser": name,
        "best": found["best"],
        "band": found["band"],
        "p": found["p"],
        "reading": found["reading"],
        "highest_of_told": float(np.asarray(found["auc"])[told].max()),
        "reach": float(np.abs(np.asarray(found["interval"])[:, told] - 0.5).max()),
        "sequences": found["sequences"],
        "why": why,
        "passes": False,
        "shown gone": outcome == YES,
    }
    if cost is not None:
        useful = cost["utility"]
        kept |= {
            "recall": cost["recall"]["mean"],
            "ratio": useful["ratio"],
            "role_swap": useful["role_swap"],
        }
        kept["quiet"] = bool(
            found["reading"] == "none"
            and kept["recall"] <= RECALL
            and kept["ratio"] <= UTILITY
            and not kept["role_swap"]
        )
        kept["passes"] = kept["quiet"] and outcome == YES
    return kept
