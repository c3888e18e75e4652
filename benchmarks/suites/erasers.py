"""LEACE at many sites against ``concept-erasure``.

Time is compared at equal accuracy: both sides in float64, and both with covariances in
float32. What each leaves of the concept is measured on the rows of the fit, in float64.
"""

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.nn.functional import one_hot

from benchmarks.harness.fixtures import activations
from benchmarks.harness.pages import Page, results
from benchmarks.harness.results import Row, at_least, at_most, ratio, row
from benchmarks.harness.runner import Run, Suite
from erasure.concept.leace import Leace
from erasure.concept.moments import Moments
from erasure.concept.projections import MeanDifference
from evidence.errors import InputError

PAGE = Page(
    "erasers",
    lambda: results("erasers"),
    markers=("<!-- figures: python -m benchmarks erasers -->", "<!-- end of figures -->"),
)
SIDES = ("ours", "theirs")
INSTALL = "Install the extra bench: pip install -e .[dev,bench]"
PEER = "concept-erasure 0.2.4, one site after another"


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sites", type=int, default=31)
    parser.add_argument("--rows", type=int, default=20_000)


SUITE = Suite(
    "erasers",
    "LEACE against concept-erasure: time at equal accuracy, and what each leaves.",
    result="erasers",
    pages=(PAGE,),
    options=_options,
    threads=1,
)
shared_rows = cache(activations)


def peer_fitter(*arguments, **options):
    """A fitter of concept-erasure's, which warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from concept_erasure import LeaceFitter  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise InputError("concept-erasure is not installed", fix=INSTALL) from None
    return LeaceFitter(*arguments, **options)


def peer_erasers(x: np.ndarray, z: torch.Tensor, kind: torch.dtype) -> list:
    """One eraser a site, without shrinkage as the paper has it."""
    erasers = []
    for site in range(len(x)):
        fitter = peer_fitter(x.shape[2], z.shape[1], dtype=kind, shrinkage=False)
        fitter.update(torch.from_numpy(x[site]), z.to(kind))
        erasers.append(in_float64(fitter.eraser))
    return erasers


def in_float64(eraser):
    """A peer's eraser as it was fitted, applied without rounding."""
    names = ("proj_left", "proj_right", "bias")
    return replace(eraser, **{name: getattr(eraser, name).double() for name in names})


def own_erasers(x: np.ndarray, labels: np.ndarray, kind: torch.dtype) -> list:
    """One transformation a site, all sites fitted at once."""
    moments = Moments(precision=kind).update(x, labels)
    eraser = Leace().fit_moments(moments).eraser_
    return [eraser.at(site).transform for site in range(len(x))]


def left_over(rows: np.ndarray, before: np.ndarray, z: np.ndarray) -> float:
    """Largest covariance of a feature with a column of the concept, by both spreads.

    That is the slope of every convex loss of a linear reader at a constant one. Spreads
    are those before erasing: of a feature that is erased whole, rounding is left.
    """
    z = z - z.mean(0)
    cross = np.abs((rows - rows.mean(0)).T @ z) / len(rows)
    return float((cross / np.outer(before.std(0), z.std(0))).max())


def farthest(erasers: list, exact: list, x: np.ndarray) -> float:
    """Largest difference of what two lists of erasers make of each site's rows."""
    found = []
    for table, one, other in zip(x, erasers, exact, strict=True):
        wide = torch.from_numpy(table).double()
        gap = (one(wide) - other(wide)).abs().max() / wide.std(0).max()
        found.append(float(gap))
    return max(found)


@SUITE.part()
def speed(run: Run) -> Iterator[Row]:
    """Times of both, and how far what they give is from each other's in float64."""
    clock = run.clock
    x, labels = shared_rows(run.args.rows, 576, run.args.sites)
    z = one_hot(torch.from_numpy(labels))
    sites, n, d = x.shape
    exact: list = []
    for kind in (torch.float64, torch.float32):
        name = str(kind).removeprefix("torch.")
        own, peer, kept = [], [], {}
        for _ in range(clock.repeats):
            seconds, kept["ours"] = clock.measured(partial(own_erasers, x, labels, kind), 1)
            own += seconds
            seconds, kept["theirs"] = clock.measured(partial(peer_erasers, x, z, kind), 1)
            peer += seconds
        # The peer's own answer in float64 is what both are held against.
        exact = exact or kept["theirs"]
        apart = {side: farthest(kept[side], exact, x) for side in SIDES}
        judged = kind == torch.float64
        more = {"agreement": apart["ours"]} if judged else {}
        about = f"{sites} sites, n={n}, d={d}, {name}"
        yield ratio(f"LEACE, {about}", peer, own, 3 if judged else None, PEER, **more)
        for side in ("ours",) if judged else SIDES:
            figure = f"difference of erased rows, {side} in {name}, by their spread"
            goal = at_most(1e-6 if judged else None)
            yield row(figure, apart[side], goal, peer=f"{PEER}, float64", n=sites)


@SUITE.part()
def guardedness(run: Run) -> Iterator[Row]:
    """What linear readers find after erasing, and what erasing twice does."""
    x, labels = shared_rows(run.args.rows, 576, run.args.sites)
    sites = len(x)
    moments = Moments().update(x, labels)
    leace = Leace().fit_moments(moments)
    orthogonal = MeanDifference().fit_moments(moments)
    z = np.eye(2)[labels]
    before, gaps, twice, change = [], [], [], []
    for site in range(sites):
        wide, eraser = x[site].astype(np.float64), leace.eraser_.at(site)
        after = eraser.transform(wide)
        spread = wide.std(0).max()
        before.append(left_over(wide, wide, z))
        gaps.append(left_over(after, wide, z))
        twice.append(float(np.abs(eraser.transform(after) - after).max() / spread))
        other = orthogonal.eraser_.at(site).transform(wide)
        change.append(np.square(after - wide).sum() / np.square(other - wide).sum())
    figure, worst = ("largest correlation of a feature with the class", "worst of all sites")
    yield row(f"{figure}, before", min(before), at_least(), peer="least of all sites", n=sites)
    yield row(f"{figure}, after LEACE", max(gaps), at_most(1e-6), peer=worst, n=sites)
    figure = "change by a second erasure, by the rows' spread"
    yield row(figure, max(twice), at_most(1e-6), peer=worst, n=sites)
    figure = "squared change, of that of projecting off the mean difference"
    yield row(figure, float(np.median(change)), at_most(1), peer="median site", n=sites)
    entropy = log_loss(labels, np.full(len(labels), labels.mean()))
    best = {"before": [], "after": []}
    some = (0, sites // 2)
    for site in some:
        wide = x[site].astype(np.float64)
        after = leace.eraser_.at(site).transform(wide)
        for name, table in (("before", wide), ("after", after)):
            table = (table - table.mean(0)) / table.std(0)
            reader = LogisticRegression(solver="newton-cholesky", tol=1e-8)
            chances = reader.fit(table, labels).predict_proba(table)
            best[name].append(entropy - log_loss(labels, chances))
    for name, limit in (("before", None), ("after", 1e-6)):
        yield row(
            f"nats a logistic reader gains on a constant, {name} LEACE",
            float(np.max(best[name])),
            at_most(limit),
            "nats",
            "scikit-learn on the rows of the fit, best of some sites",
            len(some),
        )


@SUITE.part("peer")
def peer_faults(run: Run) -> Iterator[Row]:
    """Cases where an absolute tolerance, or float32 sums, may leave the concept."""
    x, labels = activations(4000, 96, 3)
    x = x[1].astype(np.float64)
    plain = np.eye(2)[labels]
    rare = np.where(np.arange(4000) < 2, 2, labels)
    many = np.arange(4000) % 80
    noise = np.random.default_rng(0).standard_normal((80, 96))
    tied = x.copy()
    tied[:, 5] = tied[:, 6] - 2 * tied[:, 7]
    far = x / x.std() + 3e3
    cases = {
        "a concept in units of 0.02": (x, 0.02 * (plain[:, :1] - 0.5)),
        "a class of 2 rows in 4,000": (x, np.eye(3)[rare]),
        "80 classes of 50 rows": (x + 0.1 * x.std() * noise[many], np.eye(80)[many]),
        "a feature that is a sum of others": (tied, plain),
        "60 rows of 96 features": (x[:60], plain[:60]),
        "float32 rows 3,000 spreads from zero": (far.astype(np.float32), plain),
    }
    for name, (table, z) in cases.items():
        wide = table.astype(np.float64)
        given = torch.from_numpy(table)
        sizes = (table.shape[1], z.shape[1])
        fitter = peer_fitter(*sizes, dtype=given.dtype, shrinkage=False)
        eraser = in_float64(fitter.update(given, torch.from_numpy(z)).eraser)
        theirs = eraser(given.double()).numpy()
        ours = Leace().fit(table, z).transform(wide)
        figure, n = f"largest correlation left: {name}", len(z)
        yield row(figure, left_over(ours, wide, z), at_most(1e-6), peer="ours", n=n)
        value = left_over(theirs, wide, z)
        yield row(figure, value, at_most(), peer="concept-erasure", n=n)
