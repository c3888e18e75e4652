"""Shrinkage LDA, ridge and CKA against loops and libraries."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from benchmarks.harness.fixtures import activations
from benchmarks.harness.results import Row, at_most, ratio, row
from benchmarks.harness.runner import Run
from benchmarks.suites.logistic import states
from probes.cka import cka_matrix
from probes.estimators.lda import LDAProbe
from probes.estimators.ridge import RidgeProbe
from probes.splits.folds import leave_one_group_out


def discriminant(run: Run) -> Iterator[Row]:
    """Leave-one-out shrinkage LDA against refits."""
    clock = run.clock
    for d, target in ((576, 800), (2048, 25_000)):
        sites = 2 if run.args.quick else 6
        x, y = states(200, d, 31, "standardised")
        folds = leave_one_group_out(None, 200)
        codes, probe = clock.put(y[None]), LDAProbe(0.1)

        def work(x=x, codes=codes, folds=folds, probe=probe, sites=sites):
            return [
                probe.held_out(clock.put(x[site]), codes, 2, folds).scores[0, 0].cpu()
                for site in range(sites)
            ]

        seconds, (scores, *_) = clock.measured(work)
        fits = 2 if d > 1000 or run.args.quick else 10
        peer, worst = [], 0.0
        for _ in range(1 if d > 1000 else clock.repeats):
            start = clock.now()
            for fold in range(fits):
                model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
                train = folds.train[fold]
                table = x[0].astype(np.float64)
                model.fit(table[train], y[train])
                value = model.decision_function(table[fold : fold + 1])
                gap = abs(float(value[0]) - float(scores[fold]))
                worst = max(worst, gap / float(scores.abs().max()))
            peer.append((clock.now() - start) / fits * 6200)
        yield ratio(
            f"leave-one-out shrinkage LDA, n=200, d={d}, 31 sites, float64",
            peer,
            [each / sites * 31 for each in seconds],
            target,
            f"scikit-learn refits, extrapolated from {fits}",
            agreement=worst,
        )


def ridge(run: Run) -> Iterator[Row]:
    """Leave-one-out ridge regression."""
    x, y = states(200, 576, 8, "standardised")
    x = x.astype(np.float64)
    folds = leave_one_group_out(None, 200)
    codes = run.clock.put(y[None])

    def ours():
        return [
            RidgeProbe(1.0).held_out(run.clock.put(site), codes, 2, folds).scores.cpu()
            for site in x
        ]

    def theirs():
        for site in x:
            RidgeClassifierCV(alphas=[1.0], store_cv_results=True).fit(site, y)

    own, scores = run.clock.measured(ours)
    peer = run.clock.times(theirs)
    worst = 0.0
    for fold in (0, 50, 199):
        model = RidgeClassifier(alpha=1.0, solver="cholesky")
        model.fit(x[3][folds.train[fold]], y[folds.train[fold]])
        value = float(model.decision_function(x[3][fold : fold + 1])[0])
        worst = max(worst, abs(value - float(scores[3][0, 0, fold])))
    figure = "leave-one-out ridge, n=200, d=576, float64"
    against = "scikit-learn RidgeClassifierCV (parity, no claim)"
    yield ratio(figure, peer, own, None, against, agreement=worst)
    figure = "leave-one-out ridge, largest error"
    yield row(figure, worst, at_most(1e-10), peer="scikit-learn RidgeClassifier refits", n=3)


def _hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    value = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (value - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)) / (n * (n - 3))


def textbook_pair(x: torch.Tensor, y: torch.Tensor) -> float:
    """One pair as the formula reads: two Gram matrices and three HSICs."""
    k, m = x @ x.T, y @ y.T
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def cka(run: Run) -> Iterator[Row]:
    """Debiased CKA of all pairs of 31 sites."""
    clock = run.clock
    n = 500 if run.args.quick else 2000
    x, _ = activations(n, 576, 31)
    own, matrix = clock.measured(partial(cka_matrix, x, device=clock.device))
    tables = torch.from_numpy(x)
    centered = tables - tables.mean(1, keepdim=True)
    centered = centered / centered.norm(dim=(1, 2), keepdim=True) * n**0.5
    there = centered.to(clock.device)
    name = there.device.type.upper()
    error = float(np.abs(matrix - cka_matrix(x, precision=torch.float64)).max())
    figure = f"all-pairs debiased CKA, 31 x 31, n={n}, d=576, float32"
    for where, pair in {"CPU": centered[[3, 17]], name: there[[3, 17]]}.items():
        peer = [seconds * 496 for seconds in clock.times(partial(textbook_pair, *pair))]
        against = f"textbook loop on the {where}, extrapolated from one pair"
        yield ratio(figure, peer, own, 50, against, agreement=error)
    try:
        from cka import cka_from_features  # pyright: ignore[reportMissingImports]
    except ImportError:
        print("pytorch-cka is not installed: its row is left out")
    else:
        peer = clock.times(lambda: cka_from_features(there, there), 2)
        against = f"pytorch-cka, all pairs at once, on the {name}"
        yield ratio(f"{figure}, one pass", peer, own, 3, against, agreement=error)
    figure = "all-pairs CKA, largest float32 error"
    yield row(figure, error, at_most(2e-6), peer="ours in float64", n=496)
