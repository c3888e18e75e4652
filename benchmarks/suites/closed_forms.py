"""Shrinkage LDA, ridge and CKA against loops and libraries."""

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV

from benchmarks.harness.fixtures import activations
from benchmarks.harness.results import Clock, Rows
from benchmarks.suites.logistic import standardised
from probes.cka import cka_matrix
from probes.estimators.lda import LDAProbe
from probes.estimators.ridge import RidgeProbe
from probes.splits.folds import leave_one_group_out


def discriminant(rows: Rows, clock: Clock, quick: bool) -> None:
    for d, target in ((576, 800), (2048, 25_000)):
        sites = 2 if quick else 6
        x, y = activations(200, d, 31)
        x = standardised(x)
        folds = leave_one_group_out(None, 200)
        codes = clock.put(y[None])
        kept, probe = {}, LDAProbe(0.1)

        def work(x=x, codes=codes, folds=folds, kept=kept, probe=probe, sites=sites):
            for site in range(sites):
                found = probe.held_out(clock.put(x[site]), codes, 2, folds)
                kept[site] = found.scores[0, 0].cpu()

        own = [seconds / sites * 31 for seconds in clock.times(work)]
        fits = 2 if d > 1000 or quick else 10
        peer, worst = [], 0.0
        for _ in range(1 if d > 1000 else clock.repeats):
            start = clock.now()
            for fold in range(fits):
                model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)
                train = folds.train[fold]
                table = x[0].astype(np.float64)
                value = model.fit(table[train], y[train]).decision_function(
                    table[fold : fold + 1]
                )
                gap = abs(float(value[0]) - float(kept[0][fold]))
                worst = max(worst, gap / float(kept[0].abs().max()))
            peer.append((clock.now() - start) / fits * 6200)
        rows.ratio(
            f"leave-one-out shrinkage LDA, n=200, d={d}, 31 sites, float64",
            peer,
            own,
            target,
            f"scikit-learn refits, extrapolated from {fits}",
            agreement=worst,
        )


def ridge(rows: Rows, clock: Clock, quick: bool) -> None:
    x, y = activations(200, 576, 8)
    x = standardised(x).astype(np.float64)
    folds = leave_one_group_out(None, 200)
    codes = clock.put(y[None])
    kept = {}

    def ours():
        for site in range(8):
            found = RidgeProbe(1.0).held_out(clock.put(x[site]), codes, 2, folds)
            kept[site] = found.scores.cpu()

    def theirs():
        for site in range(8):
            RidgeClassifierCV(alphas=[1.0], store_cv_results=True).fit(x[site], y)

    own, peer = clock.times(ours), clock.times(theirs)
    worst = 0.0
    for fold in (0, 50, 199):
        model = RidgeClassifier(alpha=1.0, solver="cholesky")
        model.fit(x[3][folds.train[fold]], y[folds.train[fold]])
        value = float(model.decision_function(x[3][fold : fold + 1])[0])
        worst = max(worst, abs(value - float(kept[3][0, 0, fold])))
    rows.ratio(
        "leave-one-out ridge, n=200, d=576, float64",
        peer,
        own,
        None,
        "scikit-learn RidgeClassifierCV (parity, no claim)",
        agreement=worst,
    )
    rows.add(
        "leave-one-out ridge, largest error",
        worst,
        1e-10,
        "<=",
        "",
        "scikit-learn RidgeClassifier refits",
        0.0,
        3,
    )


def _hsic(k: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    n = len(k)
    k, m = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0)
    value = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))
    return (value - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)) / (n * (n - 3))


def textbook_pair(x: torch.Tensor, y: torch.Tensor) -> float:
    """One pair as the formula reads: two Gram matrices and three HSICs."""
    k, m = x @ x.T, y @ y.T
    return float(_hsic(k, m) / (_hsic(k, k) * _hsic(m, m)).sqrt())


def cka(rows: Rows, clock: Clock, quick: bool) -> None:
    n = 500 if quick else 2000
    x, _ = activations(n, 576, 31)
    kept = {}

    def ours():
        kept["matrix"] = cka_matrix(x, device=clock.device)

    own = clock.times(ours)
    tables = torch.from_numpy(x)
    centred = tables - tables.mean(1, keepdim=True)
    centred = centred / centred.norm(dim=(1, 2), keepdim=True) * n**0.5
    there = centred.to(clock.device)
    loops = {"CPU": centred[[3, 17]], there.device.type.upper(): there[[3, 17]]}
    exact = cka_matrix(x, precision=torch.float64)
    error = float(np.abs(kept["matrix"] - exact).max())
    for where, pair in loops.items():
        pairs = clock.times(lambda pair=pair: textbook_pair(*pair))
        rows.ratio(
            f"all-pairs debiased CKA, 31 x 31, n={n}, d=576, float32",
            [seconds * 496 for seconds in pairs],
            own,
            50,
            f"textbook loop on the {where}, extrapolated from one pair",
            agreement=error,
        )
    try:
        from cka import cka_from_features
    except ImportError:
        print("pytorch-cka is not installed: its row is left out")
    else:
        rows.ratio(
            f"all-pairs debiased CKA, 31 x 31, n={n}, d=576, float32, one pass",
            clock.times(lambda: cka_from_features(there, there), 2),
            own,
            3,
            f"pytorch-cka, all pairs at once, on the {there.device.type.upper()}",
            agreement=error,
        )
    rows.add(
        "all-pairs CKA, largest float32 error",
        error,
        2e-6,
        "<=",
        "",
        "ours in float64",
        0.0,
        496,
    )
