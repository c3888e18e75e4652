"""How close does any eraser come? Utility and recall against the battery's best AUC.

Every setting sees a part of the keys; the others are what the battery of readers is
tried on. An eraser passes where recall is gone, perplexity stays within 1.05 times, no
clean code took a memorised one's place, and every reader that found the signature in
the original is equivalent to chance. Quadratic erasure is not among them: it must be
told of each row whether it was memorised.
"""

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.harness.results import Row, at_least, row
from benchmarks.harness.runner import Run
from benchmarks.pga.worlds import EPOCHS, SHARES
from experiments.pga.claims import LEVEL, YES, absence_outcome
from experiments.pga.config import PgaExperiment, make_config
from experiments.pga.erasers import Erased, edits_at_every_depth, erase, leace, md_edits
from experiments.pga.results import Cost, HeldOutScores
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
            f"{name}, weight {weight:g}": _named(name, epochs=epochs, align_weight=weight)
            for weight in short
        }
        found |= {
            f"{name}, weight {weight:g}, {4 * epochs} epochs": _named(
                name, epochs=4 * epochs, align_weight=weight
            )
            for weight in long
        }
    found["adversarial pga, weight 1"] = _named("adversarial pga", epochs=epochs, align_weight=1.0)
    found |= {f"md-pga, k = {k}": _md(k) for k in (1, 2, 8)}
    found["leace, every depth"] = _named("leace")
    found["leace, last depth"] = _at_last
    found |= {name: _named(name) for name in ("gradient ascent", "npo", "idk")}
    return found


def experiment(
    run: Run, size: str, seed: int, share: float = 0.5, device: str = "cpu"
) -> Experiment:
    """A world of codes with its twin, and erasers that see a share of the keys."""
    settings = {"size": size, "seed": seed, "erase_share": share, "device": device}
    config = make_config(settings | {"permutations": run.args.permutations})
    world = build_codes(
        SIZES[size], seed, run.args.root, twin=True, device=config.device, progress=run.progress
    )
    return Experiment(config, world, run.progress)


def unmodified(tried: Experiment, name: str = "original") -> Erased:
    """The original or the twin as it is."""
    return Erased(tried.load(name), {}, {})


def references(tried: Experiment, original: HeldOutScores) -> dict[str, dict]:
    """Points of what is untouched: the original, by its battery, and the twin."""
    twin = tried.sound_scores(unmodified(tried, "twin"))
    return {
        "original": point("original", original, original, None, tried.config),
        NEVER: point(NEVER, twin, original, None, tried.config),
    }


def tried_point(tried: Experiment, name: str, original: HeldOutScores) -> dict:
    """The point of one setting."""
    erased = settings(EPOCHS)[name](tried)
    cost = tried.recall_and_utility(erased, tried.seen)
    return point(name, tried.sound_scores(erased), original, cost, tried.config)


def curve(run: Run) -> Iterator[Row]:
    """Every eraser at several strengths: recall, utility and battery."""
    size, seed = run.key[0], int(run.key[1])
    share = SHARES.get(size, 0.5)
    tried = experiment(run, size, seed, share, run.clock.device)
    original = tried.sound_scores(unmodified(tried))
    done = run.document.get("parts", {}).get(run.part, {}) if run.args.resume else {}
    run.start -= done.get("seconds", 0)
    points = {each["eraser"]: each for each in done.get("points", ())}
    if NEVER not in points:
        points = references(tried, original)
    names = run.share(settings(EPOCHS))
    margin = tried.config.margin
    run.payload = {"size": size, "margin": margin, "share": share, "finished": False}
    with run.progress.task("erasers", len(names)) as advance:
        for name in names:
            if name not in points:
                points[name] = tried_point(tried, name, original)
                run.payload["points"] = list(points.values())
                run.keep(curve_rows(run.payload["points"], size, seed))
            advance(1)
    run.payload |= {"points": list(points.values()), "finished": True}
    yield from curve_rows(run.payload["points"], size, seed)


def curve_rows(points: list[dict], size: str, seed: int) -> list[Row]:
    """How many pass, and how many would if silence were enough."""
    tried = [each for each in points if "ratio" in each]
    passing = [each["eraser"] for each in tried if each["passes"]]
    quiet = [each["eraser"] for each in tried if each["quiet"]]
    figure = (
        f"erasers that pass on codes, {size}, seed {seed}: recall under {RECALL}, "
        f"perplexity within {UTILITY} times, equivalent to chance"
    )
    silent = f"the same, {size}, seed {seed}, were not finding it enough"
    return [
        row(name, len(found), goal, "erasers", peer, len(tried), seed=seed)
        for name, found, goal in ((figure, passing, at_least(1)), (silent, quiet, at_least()))
        for peer in [", ".join(found) or "none"]
    ]


def point(
    name: str,
    found: HeldOutScores,
    original: HeldOutScores,
    cost: Cost | None,
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
    found_in_original = np.asarray(original["p_column"]) <= LEVEL
    kept = {
        "eraser": name,
        "best": found["best"],
        "band": found["band"],
        "p": found["p"],
        "reading": found["reading"],
        "highest_of_told": float(np.asarray(found["auc"])[found_in_original].max()),
        "reach": float(np.abs(np.asarray(found["interval"])[:, found_in_original] - 0.5).max()),
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
