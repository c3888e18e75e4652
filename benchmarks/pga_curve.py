"""How close does any eraser come? Utility and recall against the battery's best AUC.

Every setting sees half of the keys; the other half is what the battery of readers is
tried on. An eraser passes where recall is gone, perplexity stays within 1.05 times, no
clean code took a memorised one's place, and every reader that found the signature in
the original is equivalent to chance. Quadratic erasure is not among them: it must be
told of each row whether it was memorised.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from audits.pga import Experiment
from audits.pga_claims import LEVEL, YES, shown_gone
from audits.pga_config import PgaExperiment, make_config
from audits.pga_erasers import Erased, edits_at_every_depth, erase, leace, md_edits
from benchmarks.pga_simulated import row
from evidence.progress import Progress
from testbeds.codes import CodesWorld, build_codes
from testbeds.codes_config import SIZES

Make = Callable[[CodesWorld, np.ndarray], Erased]
RECALL, UTILITY = 0.01, 1.05


def _named(name: str, **more) -> Make:
    return lambda world, keys: erase(name, world.load(), world, keys, **more)


def _md(k: int) -> Make:
    def make(world: CodesWorld, keys: np.ndarray) -> Erased:
        model = world.load()
        return Erased(model, md_edits(model, world, keys, k), {})

    return make


def _at_last(world: CodesWorld, keys: np.ndarray) -> Erased:
    """LEACE at the last depth alone."""
    model = world.load()
    edits = edits_at_every_depth(model, world, keys, leace)
    last = list(edits)[-1]
    return Erased(model, {last: edits[last]}, {})


def settings(epochs: int) -> dict[str, Make]:
    """Every eraser and strength that is tried."""
    found: dict[str, Make] = {
        f"pga, weight {weight:g}": _named("pga", epochs=epochs, align_weight=weight)
        for weight in (0.1, 1.0, 10.0)
    }
    found |= {
        f"isotropic, weight {weight:g}": _named(
            "isotropic", epochs=epochs, align_weight=weight
        )
        for weight in (0.1, 1.0, 10.0)
    }
    # Longer, where the alignment is strong enough to hide the signature.
    found |= {
        f"isotropic, weight {weight:g}, {4 * epochs} epochs": _named(
            "isotropic", epochs=4 * epochs, align_weight=weight
        )
        for weight in (3.0, 10.0, 30.0)
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
) -> dict:
    """Every setting's recall, utility and battery, and whether it passes."""
    config = make_config({"size": size, "seed": seed, "permutations": permutations})
    world = build_codes(SIZES[size], seed, root, twin=True, progress=progress)
    run = Experiment(config, world, progress)
    original = run.battery(Erased(world.load(), {}, {}))
    twin = run.battery(Erased(world.load("twin"), {}, {}))
    points = [_point("original", original, original, None, config)]
    points.append(_point("never taught any code", twin, original, None, config))
    tried = settings(epochs)
    with progress.task("erasers", len(tried)) as advance:
        for name, make in tried.items():
            erased = make(world, run.seen)
            found = run.battery(erased)
            cost = run.cost(erased, run.seen)
            points.append(_point(name, found, original, cost, config))
            advance(1)
    rows = curve_rows(points, size, seed)
    return {"rows": rows, "points": points, "size": size, "margin": config.margin}


def curve_rows(points: list[dict], size: str, seed: int) -> list[dict]:
    """How many pass, and how many would if silence were enough."""
    tried = [each for each in points if "ratio" in each]
    passing = [each["eraser"] for each in tried if each["passes"]]
    quiet = [each["eraser"] for each in tried if each["quiet"]]
    return [
        row(
            f"erasers that pass the sound protocol on codes, {size}: recall under "
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
            f"the same, {size}, were not finding it enough",
            len(quiet),
            None,
            ">=",
            ", ".join(quiet) or "none",
            len(tried),
            seed=seed,
            unit="erasers",
        ),
    ]


def _point(
    name: str,
    found: dict,
    original: dict,
    cost: dict | None,
    config: PgaExperiment,
) -> dict:
    outcome, why = shown_gone(found, original, config.margin)
    told = np.asarray(original["p_column"]) <= LEVEL
    point = {
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
    }
    if cost is not None:
        useful = cost["utility"]
        point |= {
            "recall": cost["recall"]["mean"],
            "ratio": useful["ratio"],
            "role_swap": useful["role_swap"],
        }
        point["quiet"] = bool(
            found["reading"] == "none"
            and point["recall"] <= RECALL
            and point["ratio"] <= UTILITY
            and not point["role_swap"]
        )
        point["passes"] = point["quiet"] and outcome == YES
    return point
