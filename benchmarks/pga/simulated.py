"""Both protocols on states that are made up: nothing in them, or a planted signal."""

import numpy as np
import torch
from scipy.stats import kstest, norm

from erasure.concept.md_pga import fit_md_pga
from evidence.progress import Progress
from evidence.seeds import torch_rng
from experiments.pga.published_protocol import published_scores
from probes.sweeps.membership_test import membership

SIZES = (7, 40)
WIDTH = 512
ORACLE = 0.8
ENOUGH = 0.8
DRAWS = 30
"""Of points that do not say how many."""


def row(figure, value, target, sense, peer, n, **more) -> dict:
    """One row of the results table, in the shape of DESIGN section 3."""
    return {
        "figure": figure,
        "value": round(float(value), 4),
        "target": target,
        "sense": sense,
        "unit": more.pop("unit", ""),
        "peer": peer,
        "spread": more.pop("spread", None),
        "n": n,
        **more,
    }


def noise(repeats: int, permutations: int, progress: Progress) -> dict:
    """No information at all: both protocols on the same erased noise."""
    rows, samples = [], {}
    for n in SIZES:
        shown, areas, ps = [], [], []
        with progress.task(f"noise, {n} + {n}", repeats) as advance:
            for seed in range(repeats):
                x = torch.randn(
                    1, 4 * n, WIDTH, generator=torch_rng(seed, "noise", str(n))
                )
                x = x.double()
                labels = torch.from_numpy(np.repeat([1, 0], n))
                seen = x[:, : 2 * n]
                erased = fit_md_pga(seen, labels, 1).transform(seen)
                pools = erased[:, :n, None], erased[:, n:, None]
                shown.append(published_scores(*pools, shuffles=0).true.accuracy[0])
                # The sound protocol erases with as many, and tests on as many others.
                found = membership(
                    {"last": fit_md_pga(seen, labels, 1).transform(x[:, 2 * n :])},
                    labels.numpy(),
                    n_permutations=permutations,
                    n_folds=min(n, 5),
                    seed=seed,
                )
                areas.append(found.auc.mean())
                ps.append(found.p_above)
                advance(1)
        name = f"pure noise, n = {n} + {n}"
        rows += [
            row(
                f"{name}: published protocol, accuracy after erasing",
                np.mean(shown),
                0.5,
                "<=",
                "chance 0.5",
                repeats,
                spread=float(np.std(shown)),
            ),
            row(
                f"{name}: sound protocol, distance of the mean AUC from 0.5",
                abs(np.mean(areas) - 0.5),
                0.05,
                "<=",
                "",
                repeats,
                ours=float(np.mean(areas)),
                spread=float(np.std(areas)),
            ),
            row(
                f"{name}: sound protocol, p uniform (Kolmogorov-Smirnov p)",
                kstest(ps, "uniform").pvalue,
                0.01,
                ">=",
                "",
                repeats,
            ),
            row(
                f"{name}: sound protocol, share of p at or under 0.05",
                np.mean(np.array(ps) <= 0.05),
                0.1,
                "<=",
                "level 0.05",
                repeats,
            ),
        ]
        samples[str(n)] = {"published": shown, "auc": areas, "p": ps}
    return {"rows": rows, "samples": samples}


CASES = {
    "64 columns of white noise": (64, False),
    "512 columns of white noise": (512, False),
    "512 columns, variance falling as 1/k": (512, True),
}
"""Width, and whether the noise has a spectrum such as states of networks have."""


def planted(n: int, width: int, falling: bool, seed: int) -> torch.Tensor:
    """(1, 2 n, width) noise, the first n rows shifted along one direction.

    An oracle who knows the direction reads it with AUC 0.8. In falling noise it is the
    tenth principal direction, and the axes are turned, so that no column is special.
    """
    rng = torch_rng(seed, "power", str(n), str(width))
    x = torch.randn(2 * n, width, generator=rng, dtype=torch.float64)
    x[:n, 9] += float(np.sqrt(2) * norm.ppf(ORACLE))
    if falling:
        x /= torch.arange(1, width + 1).sqrt()
        turn = torch.randn(
            width, width, generator=torch_rng(0, "turn"), dtype=torch.float64
        )
        x = x @ torch.linalg.qr(turn).Q
    return x[None]


def power(
    repeats: int, permutations: int, progress: Progress, done: list[dict]
) -> dict:
    """How often a planted signal is found, by number of sequences.

    Args:
        repeats: Draws a point.
        permutations: Of each test.
        progress: Shows draws.
        done: Points of the curve that are there already, and are not drawn again.
    """
    curve = []
    before = {(each["case"], each["n"]): each for each in done}
    for case, (width, falling) in CASES.items():
        for n in (10, 20, 40, 80, 160, 320):
            hits, areas = 0, []
            if (case, n) in before:
                curve.append(before[case, n])
                if n >= 40 and before[case, n]["power"] >= ENOUGH:
                    break
                continue
            with progress.task(f"power, n = {n}, {case}", repeats) as advance:
                for seed in range(repeats):
                    found = membership(
                        {"last": planted(n, width, falling, seed)},
                        np.repeat([1, 0], n),
                        n_permutations=permutations,
                        seed=seed,
                    )
                    hits += found.p_above <= 0.05
                    areas.append(found.max_auc)
                    advance(1)
            curve.append(
                {
                    "case": case,
                    "n": n,
                    "power": hits / repeats,
                    "best": float(np.mean(areas)),
                    "draws": repeats,
                }
            )
            if n >= 40 and hits >= ENOUGH * repeats:
                break  # larger n find it as well
    return {"rows": power_rows(curve), "curve": curve}


def power_rows(curve: list[dict]) -> list[dict]:
    """Power at 40 + 40 and the n that gives 0.8, state by state."""
    rows = []
    for case in dict.fromkeys(each["case"] for each in curve):
        mine = [each for each in curve if each["case"] == case]
        here = next(each for each in mine if each["n"] == 40)
        enough = sequences_for(mine)
        inside = enough <= max(each["n"] for each in mine)
        rows.append(
            row(
                f"power at n = 40 + 40, {case}",
                here["power"],
                ENOUGH,
                ">=",
                f"power {ENOUGH} at n = {enough} + {enough}, "
                + ("interpolated" if inside else "extrapolated"),
                here.get("draws", DRAWS),
                enough=enough,
            )
        )
    return rows


def sequences_for(points: list[dict]) -> int:
    """The n at which a probit in log n, fitted from n = 40 on, reaches 0.8.

    Below that most of what is found is the level of the test.
    """
    points = [each for each in points if each["n"] >= 40]
    size = np.array([each["n"] for each in points], float)
    draws = np.array([each.get("draws", DRAWS) for each in points], float)
    share = (np.array([each["power"] for each in points]) * draws + 0.5) / (draws + 1)
    z = norm.ppf(share)
    # Weights of a probit regression: how much a share at this height says of z.
    weight = np.sqrt(draws * norm.pdf(z) ** 2 / (share * (1 - share)))
    slope, start = np.polyfit(np.log2(size), z, 1, w=weight)
    return int(np.ceil(2 ** ((norm.ppf(ENOUGH) - start) / slope)))
