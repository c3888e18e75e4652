"""LEACE at many sites against ``concept-erasure``: ``python -m benchmarks.suites.erasers``.

Time is compared at equal accuracy: both sides in float64, and both with covariances in
float32. What each leaves of the concept is measured on the rows of the fit, in float64.
"""

import argparse
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits
from torch.nn.functional import one_hot

from benchmarks.harness.fixtures import activations
from benchmarks.harness.performance_page import RESULTS
from benchmarks.harness.results import Clock, Rows, commit, machine
from benchmarks.harness.targets import target_of
from erasure.concept.leace import Leace
from erasure.concept.moments import Moments
from erasure.concept.projections import MeanDifference

RESULT = RESULTS / "erasers.json"
PAGE = Path(__file__).parents[2] / "docs" / "results" / "erasers.md"
START, END = (
    "<!-- figures: python -m benchmarks.suites.erasers -->",
    "<!-- end of figures -->",
)
PARTS = ("speed", "guardedness", "peer")
SIDES = ("ours", "theirs")
PEER = "concept-erasure 0.2.4, one site after another"


def peer_fitter(*arguments, **options):
    """A fitter of concept-erasure's, which warns when it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from concept_erasure import LeaceFitter
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


def left_over(rows: np.ndarray, before: np.ndarray, z: np.ndarray) -> float:
    """Largest covariance of a feature with a column of the concept, by both spreads.

    That is the slope of every convex loss of a linear reader at a constant one. Spreads
    are those before erasing: of a feature that is erased whole, rounding is left.
    """
    z = z - z.mean(0)
    cross = np.abs((rows - rows.mean(0)).T @ z) / len(rows)
    return float((cross / np.outer(before.std(0), z.std(0))).max())


def speed(rows: Rows, clock: Clock, x: np.ndarray, labels: np.ndarray) -> None:
    """Times of both, and how far what they give is from each other's in float64."""
    z = one_hot(torch.from_numpy(labels))
    sites, n, d = x.shape
    kept: dict[str, list] = {}

    def ours(kind: torch.dtype) -> None:
        moments = Moments(precision=kind).update(x, labels)
        eraser = Leace().fit_moments(moments).eraser_
        kept[f"ours {kind}"] = [eraser.at(site).transform for site in range(sites)]

    def theirs(kind: torch.dtype) -> None:
        kept[f"theirs {kind}"] = peer_erasers(x, z, kind)

    for kind in (torch.float64, torch.float32):
        name = str(kind).removeprefix("torch.")
        own, peer = [], []
        for _ in range(clock.repeats):
            own += clock.times(lambda kind=kind: ours(kind), 1)
            peer += clock.times(lambda kind=kind: theirs(kind), 1)
        exact = kept[f"theirs {torch.float64}"]
        apart = {each: farthest(kept[f"{each} {kind}"], exact, x) for each in SIDES}
        # The peer's own answer in float64 is what both are held against.
        target, limit = (3, 1e-6) if kind == torch.float64 else (None, None)
        more = {"agreement": apart["ours"]} if target else {}
        about = f"{sites} sites, n={n}, d={d}, {name}"
        rows.ratio(f"LEACE, {about}", peer, own, target, PEER, **more)
        for each in SIDES if target is None else ("ours",):
            figure = f"difference of erased rows, {each} in {name}, by their spread"
            value = apart[each]
            against = f"{PEER}, float64"
            rows.add(figure, value, limit, "<=", "", against, 0.0, sites)


def farthest(erasers: list, exact: list, x: np.ndarray) -> float:
    """Largest difference of what two lists of erasers make of each site's rows."""
    found = []
    for table, one, other in zip(x, erasers, exact, strict=True):
        wide = torch.from_numpy(table).double()
        gap = (one(wide) - other(wide)).abs().max() / wide.std(0).max()
        found.append(float(gap))
    return max(found)


def guarded(rows: Rows, x: np.ndarray, labels: np.ndarray) -> None:
    """What linear readers find after erasing, and what erasing twice does."""
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
    rows.add(
        "largest correlation of a feature with the class, before",
        min(before),
        None,
        ">=",
        "",
        "least of all sites",
        0.0,
        sites,
    )
    figure = "largest correlation of a feature with the class, after LEACE"
    rows.add(figure, max(gaps), 1e-6, "<=", "", "worst of all sites", 0.0, sites)
    figure = "change by a second erasure, by the rows' spread"
    rows.add(figure, max(twice), 1e-6, "<=", "", "worst of all sites", 0.0, sites)
    figure = "squared change, of that of projecting off the mean difference"
    rows.add(figure, float(np.median(change)), 1, "<=", "", "median site", 0.0, sites)
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
        rows.add(
            f"nats a logistic reader gains on a constant, {name} LEACE",
            float(np.max(best[name])),
            limit,
            "<=",
            "nats",
            "scikit-learn on the rows of the fit, best of some sites",
            0.0,
            len(some),
        )


def where_the_peer_is_wrong(rows: Rows) -> None:
    """Cases where an absolute tolerance, or float32 sums, may leave the concept."""
    x, labels = activations(4000, 96, 3)
    x = x[1].astype(np.float64)
    plain = np.eye(2)[labels]
    rare = np.where(np.arange(4000) < 2, 2, labels)
    many = np.arange(4000) % 80
    shifted = (
        x + 0.1 * x.std() * np.random.default_rng(0).standard_normal((80, 96))[many]
    )
    tied = x.copy()
    tied[:, 5] = tied[:, 6] - 2 * tied[:, 7]
    far = x / x.std() + 3e3
    cases = {
        "a concept in units of 0.02": (x, 0.02 * (plain[:, :1] - 0.5)),
        "a class of 2 rows in 4,000": (x, np.eye(3)[rare]),
        "80 classes of 50 rows": (shifted, np.eye(80)[many]),
        "a feature that is a sum of others": (tied, plain),
        "60 rows of 96 features": (x[:60], plain[:60]),
        "float32 rows 3,000 spreads from zero": (far.astype(np.float32), plain),
    }
    for name, (table, z) in cases.items():
        wide = table.astype(np.float64)
        ours = Leace().fit(table, z).transform(wide)
        given = torch.from_numpy(table)
        fitter = peer_fitter(
            table.shape[1], z.shape[1], dtype=given.dtype, shrinkage=False
        )
        eraser = in_float64(fitter.update(given, torch.from_numpy(z)).eraser)
        theirs = eraser(given.double()).numpy()
        figure = f"largest correlation left: {name}"
        rows.add(figure, left_over(ours, wide, z), 1e-6, "<=", "", "ours", 0.0, len(z))
        rows.add(
            figure,
            left_over(theirs, wide, z),
            None,
            "<=",
            "",
            "concept-erasure",
            0.0,
            len(z),
        )


def write_page(results: dict) -> None:
    """The table in docs/results/erasers.md, from the results."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(START)
    _, tail = rest.split(END)
    where = ", ".join(f"{k} {v}" for k, v in results["machine"].items() if v)
    table = (
        f"\nCommit `{results['commit']}`, {where}; {results['threads']} thread(s) on "
        f"both sides, {results['clock']}.\n\n"
        "| figure | measured | target | against |\n|---|---|---|---|\n"
    )
    for row in results["rows"]:
        value = f"{row['value']:.3g} {row['unit']}".strip()
        table += f"| {row['figure']} | {value} | {target_of(row)} | {row['peer']} |\n"
    PAGE.write_text(head + START + table + END + tail, encoding="utf-8")


def write(file: Path, rows: Rows, clock: Clock) -> dict:
    """Rows measured now, and of earlier runs the parts that were not."""
    before = (
        json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
    )
    fresh = {row["part"] for row in rows.rows}
    whole = [*rows.rows, *(row for row in before if row["part"] not in fresh)]
    results = {
        "command": "python -m benchmarks.suites.erasers " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": machine(),
        "clock": clock.name,
        "threads": clock.threads,
        "rows": sorted(whole, key=lambda row: PARTS.index(row["part"])),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main() -> None:
    """Measure the parts asked for and write the results, part by part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sites", type=int, default=31)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--result", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    clock, rows = Clock(asked.threads, asked.repeats), Rows()
    data = ()
    if asked.only != ["peer"]:
        data = activations(asked.rows, 576, asked.sites)
    with threadpool_limits(asked.threads):
        for part in asked.only:
            rows.part = part
            if part == "speed":
                speed(rows, clock, *data)
            elif part == "guardedness":
                guarded(rows, *data)
            else:
                where_the_peer_is_wrong(rows)
            if asked.dry:
                continue
            results = write(asked.result, rows, clock)
            if asked.result == RESULT:
                write_page(results)


if __name__ == "__main__":
    main()
