"""Both protocols where the truth is known: no information, or a planted signal."""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.stats import kstest, norm

from benchmarks.harness.results import Row, at_least, at_most, row
from benchmarks.harness.runner import Run
from erasure.concept.md_pga import fit_md_pga
from evidence.seeds import numpy_rng, torch_rng
from experiments.pga.published_protocol import published_scores
from experiments.pga.states import VIEWS, pool_states
from probes.sweeps.membership_test import membership
from testbeds.memorized_codes.config import SIZES as WORLDS
from testbeds.memorized_codes.world import build_codes
from testbeds.worlds.code_text import make_pools

SIZES = (7, 40)
WIDTH = 512
ORACLE = 0.8
ENOUGH = 0.8
DRAWS = 30
"""Of points that do not say how many."""


def noise(run: Run) -> Iterator[Row]:
    """States without information: both protocols on the same erased noise."""
    repeats, samples = run.args.draws, run.payload.setdefault("samples", {})
    for n in SIZES:
        shown, areas, ps = [], [], []
        with run.progress.task(f"noise, {n} + {n}", repeats) as advance:
            for seed in range(repeats):
                x = torch.randn(1, 4 * n, WIDTH, generator=torch_rng(seed, "noise", str(n)))
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
                    n_permutations=run.args.permutations,
                    n_folds=min(n, 5),
                    seed=seed,
                )
                areas.append(found.auc.mean())
                ps.append(found.p_above)
                advance(1)
        name = f"pure noise, n = {n} + {n}"
        figure = f"{name}: published protocol, accuracy after erasing"
        spread = float(np.std(shown))
        yield row(figure, np.mean(shown), at_most(0.5), "", "chance 0.5", repeats, spread)
        figure = f"{name}: sound protocol, distance of the mean AUC from 0.5"
        mean, spread = float(np.mean(areas)), float(np.std(areas))
        gap = abs(mean - 0.5)
        yield row(figure, gap, at_most(0.05), n=repeats, spread=spread, ours=mean)
        figure = f"{name}: sound protocol, p uniform (Kolmogorov-Smirnov p)"
        value = kstest(ps, "uniform").pvalue
        yield row(figure, value, at_least(0.01), n=repeats)
        figure = f"{name}: sound protocol, share of p at or under 0.05"
        value = np.mean(np.array(ps) <= 0.05)
        yield row(figure, value, at_most(0.1), "", "level 0.05", repeats)
        samples[str(n)] = {"published": shown, "auc": areas, "p": ps}


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
        turn = torch.randn(width, width, generator=torch_rng(0, "turn"), dtype=torch.float64)
        x = x @ torch.linalg.qr(turn).Q
    return x[None]


def power(run: Run) -> Iterator[Row]:
    """How often a planted signal is found, by number of sequences.

    Points of the curve that are there already are not drawn again.
    """
    repeats = run.args.draws // 4
    done = run.document.get("parts", {}).get("power", {}).get("curve", [])
    curve = run.payload.setdefault("curve", [])
    before = {(each["case"], each["n"]): each for each in done}
    for case, (width, falling) in CASES.items():
        for n in (10, 20, 40, 80, 160, 320):
            hits, areas = 0, []
            if (case, n) in before:
                curve.append(before[case, n])
                if n >= 40 and before[case, n]["power"] >= ENOUGH:
                    break
                continue
            with run.progress.task(f"power, n = {n}, {case}", repeats) as advance:
                for seed in range(repeats):
                    found = membership(
                        {"last": planted(n, width, falling, seed)},
                        np.repeat([1, 0], n),
                        n_permutations=run.args.permutations,
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
    yield from power_rows(curve)


def power_rows(curve: list[dict]) -> Iterator[Row]:
    """Power at 40 + 40 and the n that gives 0.8, state by state."""
    for case in dict.fromkeys(each["case"] for each in curve):
        mine = [each for each in curve if each["case"] == case]
        here = next(each for each in mine if each["n"] == 40)
        enough = sequences_for(mine)
        inside = enough <= max(each["n"] for each in mine)
        peer = f"power {ENOUGH} at n = {enough} + {enough}, "
        peer += "interpolated" if inside else "extrapolated"
        figure, draws = f"power at n = 40 + 40, {case}", here.get("draws", DRAWS)
        yield row(figure, here["power"], at_least(ENOUGH), "", peer, draws, enough=enough)


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


MARGINS = (0.1, 0.15, 0.2)
NUMBERS = (20, 40, 70, 100, 140, 200, 280)
PERMUTATIONS = 39
"""They give the spread of each reader's AUC under exchanged labels, not a p."""


def equivalence(run: Run) -> Iterator[Row]:
    """No signal: how many sequences show that, by margin.

    An eraser that truly removes leaves states that have nothing to do with the labels.
    So states of a real network that was never taught a code get labels drawn at random,
    and what is counted is how often every reader is equivalent to chance: that is the
    power of the test behind "removes the signature", and no eraser can do better.
    """
    draws, root = run.args.draws // 4, run.args.root
    world = build_codes(WORLDS["small"], 0, root, twin=True, progress=run.progress)
    model, most = world.load("twin"), max(NUMBERS)
    phrases = make_pools({"any": 2 * most}, 1)["any"].prefixes
    # Depth 0 is left out: it holds no more than the letters of a prefix.
    states = {
        view: pool_states(model, phrases, world.trained_lead_ins, view).mean(2)[1:]
        for view in VIEWS
    }
    curve = run.payload.setdefault("curve", [])
    for n in NUMBERS:
        reaches = []
        with run.progress.task(f"equivalence, n = {n}", draws) as advance:
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
    yield from equivalence_rows(curve)


def equivalence_rows(curve: list[dict]) -> Iterator[Row]:
    """By margin the number of sequences that shows it four times in five."""
    for margin in MARGINS:
        enough = [e["n"] for e in curve if e["power"][f"{margin:g}"] >= ENOUGH]
        if not enough:
            continue
        figure = (
            f"sequences a class of which all readers are shown to be within {margin:g} "
            f"of chance, where nothing is there, with power {ENOUGH:g}"
        )
        peer = f"the least of {', '.join(str(each['n']) for each in curve)}"
        draws = curve[0]["draws"]
        yield row(figure, min(enough), at_most(), "sequences", peer, draws)
