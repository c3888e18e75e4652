"""Logistic folds, penalties and permutations against scikit-learn loops."""

import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.harness.clock import Clock
from benchmarks.harness.fixtures import activations
from benchmarks.harness.results import Row, at_least, at_most, ratio, row
from benchmarks.harness.runner import Run
from probes.solvers.crossfit import crossfit
from probes.solvers.problem import LogisticOptions
from probes.splits.folds import Folds, k_fold, leave_one_group_out

PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
LOOP = "scikit-learn lbfgs loop, extrapolated"


def standardize(x: np.ndarray) -> np.ndarray:
    """Once over all rows of a site, as most users do."""
    return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)


def states(n: int, d: int, sites: int, scaling: str) -> tuple[np.ndarray, np.ndarray]:
    """(site, n, d) rows, standardised or raw, and (n,) labels."""
    x, y = activations(n, d, sites)
    return (standardize(x) if scaling == "standardised" else x), y


def user_fit(x, y, train, test, C=1.0, scaled: bool = False) -> None:
    """What a user writes, with enough iterations to be let off the warning."""
    model = LogisticRegression(C=C, max_iter=1000)
    model = make_pipeline(StandardScaler(), model) if scaled else model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[train], y[train])
    model.decision_function(x[test])


def user_seconds(
    x, y, folds: Folds, clock: Clock, fits: int, penalties=(1.0,), scaled: bool = False
) -> list[float]:
    """Seconds for all sites, folds and penalties, scaled from ``fits`` spread fits.

    Sites are strided and folds drawn; each of the repeats draws other folds.
    """
    rng = np.random.default_rng(0)
    sites = np.linspace(0, len(x) - 1, min(fits, len(x))).round().astype(int)
    total = len(x) * len(folds) * len(penalties)
    found = []
    for _ in range(clock.repeats):
        start = clock.now()
        for site in sites:
            for C in penalties:
                fold = int(rng.integers(len(folds)))
                user_fit(x[site], y, folds.train[fold], folds.test[fold], C, scaled)
        found.append((clock.now() - start) / (len(sites) * len(penalties)) * total)
    return found


def agreement(
    x, codes, folds: Folds, scores, classes: int, samples, C=1.0, scaled: bool = False
) -> float:
    """Largest error of held-out scores over the largest score, at the true optimum.

    The reference is newton-cholesky at tol 1e-10 in float64 on centred rows (the
    intercept is free, so centring moves nothing).
    """
    worst = 0.0
    for site, fold in samples:
        rows = x[site].astype(np.float64)
        train, test = folds.train[fold], folds.test[fold]
        rows = rows - rows.mean(0)
        rows = rows / rows[train].std(0) if scaled else rows
        if rows.shape[1] > len(rows):
            # The rows in a basis of their span: the optimum only turns with it.
            rows = np.linalg.qr(rows.T).R.T
        model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=500)
        expected = model.fit(rows[train], codes[train]).decision_function(rows[test])
        got = scores[site][:, test]
        if classes == 2:
            gap = got[0] - expected
        else:
            expected = expected.T
            gap = (got - got.mean(0)) - (expected - expected.mean(0))
        worst = max(worst, float(np.abs(gap).max() / np.abs(scores[site]).max()))
    return worst


def run_folds(clock, x, codes, classes, folds, precision, C=1.0, standardize=None):
    """Every site; (site, class or 1, row) scores and work."""
    scores, flops, unsolved = [], 0.0, 0
    codes = clock.put(np.atleast_2d(codes))
    options = LogisticOptions(C=C, precision=PRECISIONS[precision], standardize=standardize)
    for site in x:
        found = crossfit(clock.put(site), codes, classes, folds, options)
        scores.append(found.scores[0].double().cpu().numpy())
        flops += found.work.flops
        unsolved += found.n_uncertified
    if unsolved:
        raise SystemExit(f"{unsolved} fits not certified: timing them means nothing")
    return scores, flops


def ceiling(clock: Clock, precision: str, peer: list, products: float, dense: float) -> float:
    """The ratio if what is counted ran at the peak and nothing else took time.

    Args:
        clock: With the peaks.
        precision: Of the answer, and of Gram matrices and factors.
        peer: The peer's seconds.
        products: Operations of products with a factor or the rows, float32 where ours
            does most of them in it, as it does here.
        dense: Operations of Gram matrices and factors.
    """
    seconds = products / clock.peaks["float32"] + dense / clock.peaks[precision]
    return float(np.median(peer)) / seconds


def leave_one_out(run: Run) -> Iterator[Row]:
    """Leave-one-out folds of 200 rows at 31 sites."""
    clock, quick = run.clock, run.args.quick
    targets = {
        (576, "standardised"): (200, 400),
        (576, "raw"): (500, 1000),
        (2048, "standardised"): (300, 500),
        (2048, "raw"): (800, 1200),
    }
    for (d, scaling), wanted in targets.items():
        x, y = states(200, d, 31, scaling)
        folds = leave_one_group_out(None, 200)
        peer = user_seconds(x, y, folds, clock, 4 if quick else 16)
        for precision, target in zip(PRECISIONS, wanted, strict=True):
            work = partial(run_folds, clock, x, y, 2, folds, precision)
            own, (scores, flops) = clock.measured(work)
            samples = [(site, fold) for site in (0, 15, 30) for fold in (3, 77, 150)]
            # What the site pays before the folds: the Gram matrix and the factor.
            before = 31 * (2 * 200**2 * d + 6 * 200**3)
            yield ratio(
                f"leave-one-out logistic, n=200, d={d}, {scaling}, {precision}",
                peer,
                own,
                target,
                LOOP,
                agreement=agreement(x, y, folds, scores, 2, samples[: 3 if quick else 9]),
                ceiling=ceiling(clock, precision, peer, flops, before),
            )
            if (d, scaling) == (576, "standardised"):
                goal = 55 if clock.threads == 1 else 45
                yield row(
                    f"share of matmul peak, leave-one-out logistic, {precision}",
                    100 * (flops + before) / min(own) / clock.peaks[precision],
                    at_least(goal if precision == "float64" else None),
                    "%",
                    "torch.matmul",
                    len(own),
                )


def within_fold(run: Run) -> Iterator[Row]:
    """Columns scaled by the training rows of each fold, as held-out rows demand."""
    clock = run.clock
    for d in (576, 2048):
        x, y = activations(200, d, 31)
        folds = leave_one_group_out(None, 200)
        peer = user_seconds(x, y, folds, clock, 4 if run.args.quick else 16, scaled=True)
        work = partial(run_folds, clock, x, y, 2, folds, "float64", standardize="fold")
        own, (scores, _) = clock.measured(work)
        samples = [(site, fold) for site in (0, 15, 30) for fold in (3, 77, 150)]
        yield ratio(
            f"leave-one-out logistic, n=200, d={d}, standardised within the fold, float64",
            peer,
            own,
            None,
            "scikit-learn pipeline of scaler and lbfgs, extrapolated",
            agreement=agreement(x, y, folds, scores, 2, samples, scaled=True),
        )


def penalties(run: Run) -> Iterator[Row]:
    """Ten folds by group and three penalties, 2,000 rows."""
    clock, grid = run.clock, (0.1, 1.0, 10.0)
    sites = 2 if run.args.quick else 4
    for scaling in ("standardised", "raw"):
        x, y = states(2000, 576, sites, scaling)
        folds = k_fold(np.arange(2000) // 4, y, 10)
        peer = user_seconds(x, y, folds, clock, 2, grid)

        def work(x=x, y=y, folds=folds):
            return {C: run_folds(clock, x, y, 2, folds, "float64", C) for C in grid}

        own, found = clock.measured(work)
        products = sum(flops for _, flops in found.values())
        # One factor of the features for all folds of a penalty, in float32.
        dense = len(grid) * sites * (2000 * 576**2 + 576**3)
        yield ratio(
            f"10-fold by group, 3 penalties, n=2000, d=576, {scaling}, float64",
            peer,
            own,
            40,
            LOOP,
            agreement=max(
                agreement(x, y, folds, scores, 2, [(1, 4)], C) for C, (scores, _) in found.items()
            ),
            ceiling=ceiling(clock, "float32", peer, products, dense),
        )


def permutations(run: Run) -> Iterator[Row]:
    """A thousand permuted label vectors in ten folds at 31 sites."""
    clock, quick = run.clock, run.args.quick
    count, sites = (100, 1) if quick else (1000, 3)
    x, y = states(200, 576, 31, "standardised")
    rng = np.random.default_rng(1)
    labels = np.stack([rng.permutation(y) for _ in range(count)])
    folds = k_fold(None, y, 10)
    some = np.linspace(3, 27, sites).round().astype(int)
    scale = 1000 / count * 31 / sites
    peer = []
    for repeat in range(clock.repeats):
        start, fits = clock.now(), 4 if quick else 12
        for fit in range(fits):
            site, fold = some[fit % sites], (fit + repeat) % 10
            user_fit(x[site], labels[fit], folds.train[fold], folds.test[fold])
        peer.append((clock.now() - start) / fits * 310_000)
    for precision, target in (("float64", 150), ("float32", 300)):
        options = LogisticOptions(precision=PRECISIONS[precision])

        def work(options=options):
            return [
                crossfit(clock.put(x[site]), clock.put(labels), 2, folds, options) for site in some
            ]

        seconds, found = clock.measured(work)
        if any(each.n_uncertified for each in found):
            raise SystemExit("a permutation was not certified")
        scores = found[0].scores
        error = max(
            agreement(
                x,
                labels[number],
                folds,
                {some[0]: scores[number].double().cpu().numpy()},
                2,
                [(some[0], number % 10)],
            )
            for number in (0, 7, 55)
        )
        products = scale * sum(each.work.flops for each in found)
        # A factor for each fold.
        dense = scale * sites * 10 * (2 * 180**2 * 576 + 6 * 180**3)
        yield ratio(
            f"1,000 permutations x 10 folds x 31 sites, d=576, {precision}",
            peer,
            [each * scale for each in seconds],
            target,
            f"{LOOP}; ours from {sites} sites x {count}",
            agreement=error,
            ceiling=ceiling(clock, precision, peer, products, dense),
        )


def many_classes(run: Run) -> Iterator[Row]:
    """Twenty classes, one of fifty groups left out at a time."""
    clock, quick = run.clock, run.args.quick
    sites = 2 if quick else 4
    folds = leave_one_group_out(np.arange(200) // 4, 200)
    rng = np.random.default_rng(2)
    codes = rng.permutation(np.arange(200) % 20)
    marks = 0.25 * rng.standard_normal((20, 576)).astype(np.float32)[codes]
    for scaling in ("standardised", "raw"):
        x, _ = activations(200, 576, sites)
        signal = marks if scaling == "standardised" else marks * x.std(1, keepdims=True)
        x = (standardize(x) if scaling == "standardised" else x) + signal
        peer = user_seconds(x, codes, folds, clock, 2)
        work = partial(run_folds, clock, x, codes, 20, folds, "float64")
        own, (scores, products) = clock.measured(work)
        samples = [(0, 3)] if quick else [(0, 3), (sites - 1, 20)]
        # A factor for each class.
        dense = sites * (2 * 200**2 * 576 + 20 * 6 * 200**3)
        yield ratio(
            f"20 classes, leave one of 50 groups out, n=200, d=576, {scaling}, float64",
            peer,
            own,
            100,
            "scikit-learn multinomial lbfgs loop, extrapolated",
            agreement=agreement(x, codes, folds, scores, 20, samples),
            ceiling=ceiling(clock, "float64", peer, products, dense),
        )


def growth(run: Run) -> Iterator[Row]:
    """Seconds over four sizes each of sites, folds and permutations."""
    clock = run.clock
    x, y = states(200, 256, 16, "standardised")
    loo = leave_one_group_out(None, 200)
    rng = np.random.default_rng(3)
    labels = np.stack([rng.permutation(y) for _ in range(320)])
    ten = k_fold(None, y, 10)
    one, single = clock.put(x[5]), clock.put(y[None])

    def site_work(size):
        return partial(run_folds, clock, x[:size], y, 2, loo, "float64")

    def fold_work(size):
        part = Folds(loo.train[:size], loo.test[:size], "some")
        return partial(crossfit, one, single, 2, part, LogisticOptions())

    def label_work(size):
        part = clock.put(labels[:size])
        return partial(crossfit, one, part, 2, ten, LogisticOptions())

    curves = {}
    for name, sizes, make in (
        ("sites", (2, 4, 8, 16), site_work),
        ("folds", (25, 50, 100, 200), fold_work),
        ("permutations", (40, 80, 160, 320), label_work),
    ):
        seconds = [min(clock.times(make(size))) for size in sizes]
        slope = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
        curves[name] = [list(sizes), seconds]
        yield row(f"cost exponent in {name}", slope, at_most(1.1), peer="linear growth", n=4)
    run.payload["curves"] = curves
