"""One probe over every site, with permutation null and control task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from torch import Tensor

from evidence.arrays import label_values, validate_labels
from evidence.errors import InputError
from evidence.progress import AUTO, Advance, Progress, as_progress
from evidence.seeds import numpy_rng
from probes.estimators.base import LinearProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.scikit_learn import ScikitProbe, as_probe, gives_log_odds
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import Folds, as_folds, check_folds, group_codes, rebalanced
from probes.splits.nulls import control_labels, permuted_labels
from probes.sweeps.layer_sweep import LayerSweep
from probes.sweeps.nested_cv import nested_held_out
from probes.sweeps.pace import Pace
from probes.sweeps.site_source import SiteStore, open_source


def sweep(
    activations: ArrayLike | Tensor | SiteStore,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    targets: Mapping[str, ArrayLike] | None = None,
    probe: LinearProbe | BaseEstimator | None = None,
    cv: Any = "leave-one-group-out",
    penalties: Sequence[float] | None = None,
    permutations: int = 0,
    control: ArrayLike | None = None,
    rebalance: bool = False,
    coefficients: bool = False,
    draws: int = 1000,
    memory: int = 1 << 30,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = AUTO,
) -> Any:
    """Score every row at every site by probes fitted without its group.

    Args:
        activations: (site, row, d), or an object with ``sites`` and ``site(name)`` whose sites are
            read one at a time.
        labels: (row,) classes, by the rule of ``evidence.arrays``.
        groups: (row,) entity of each row; folds, permutations and intervals use whole groups. Every
            row is its own group if None.
        targets: Several label vectors by name, instead of ``labels``.
        probe: ``LogisticProbe()`` by default; another probe, or a classifier or pipeline of
            scikit-learn, which is fitted once a fold and label vector.
        cv: "leave-one-group-out", a number of folds by group, ``Folds``, a splitter of scikit-learn
            that scores each row at most once, or (train, test) index pairs.
        penalties: Values of the probe's penalty (``C``, ``alpha`` or ``shrinkage``) to choose from
            inside each fold's training groups.
        permutations: Size of the permutation null; all sites use the same permutations, so the
            maximum over sites belongs to one experiment.
        control: (row,) kind of each row (its token, template, ...) for the control task: a random
            label for each kind.
        rebalance: Keep class frequencies in every fold's training rows; see
            ``probes.splits.folds.rebalanced``.
        coefficients: Keep every fold's probe, in raw activation units.
        draws: Bootstrap draws of whole groups for the intervals.
        memory: Bytes to use at most, beside the activations.
        seed: Seed of folds, permutations, control task and bootstrap.
        device: Where to compute, such as "cuda"; where the activations are if None.
        progress: True, False or a display; one unit a site, target and label vector.

    Returns:
        A ``LayerSweep``; with ``targets`` a dict of them by name.

    Raises:
        InputError: shapes that do not fit, NaN activations, or a class missing from a fold.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum. They are listed in
            ``uncertified``, and the results stay complete.
        LongRunWarning: the whole takes more than two minutes, estimated from the first fits.

    Examples:
        >>> found = exhume.sweep(states, cities == "Lisbon", groups=people, cv=5, permutations=20)
        >>> found.sites, found.scheme
        (('resid.0', 'resid.1'), '5-fold by group (76 groups)')
        >>> found.p_value < 0.1, found.scores.shape
        (True, (2, 1, 76))
        >>> found.to_frame()[["site", "auc"]].round(1)
              site  auc
        0  resid.0  1.0
        1  resid.1  1.0
    """
    source = open_source(activations)
    if (labels is None) == (targets is None):
        raise InputError("give either labels or targets")
    label_sets = {"label": labels} if targets is None else dict(targets)
    if not label_sets:
        raise InputError("there are no targets")
    probe = LogisticProbe() if probe is None else as_probe(probe)
    progress = as_progress(progress)
    n = source.n_rows
    entities = group_codes(groups, n)
    plans = {
        name: _plan(
            values, n, entities, groups is None, cv, rebalance, permutations, control, seed, name
        )
        for name, values in label_sets.items()
    }
    results: dict[str, list[_SiteResult]] = {name: [] for name in label_sets}
    pace = Pace(len(source.names) * sum(plan.n_vectors for plan in plans.values()), progress)
    settings = _Settings(probe, penalties, coefficients, memory, seed)
    with progress.task("probing sites", pace.n_vectors) as advance:
        for site_name in source.names:
            x = source.read(site_name, device)
            for name, plan in plans.items():
                result = _one_site(x, plan, settings, pace, advance)
                results[name].append(result.at(site_name))
    sweeps = {
        name: _gather(name, plan, source.names, results[name], probe, entities, draws, seed)
        for name, plan in plans.items()
    }
    warn_uncertified([fit for layer_sweep in sweeps.values() for fit in layer_sweep.uncertified])
    return sweeps if targets is not None else sweeps["label"]


@dataclass(frozen=True)
class _Plan:
    """Labels, folds and nulls of one target."""

    classes: NDArray
    codes: NDArray[np.int64]
    folds: Folds
    inner_groups: NDArray[np.int64]
    null: NDArray[np.int64]
    null_folds: tuple[Folds, ...]
    control: NDArray[np.int64] | None

    @property
    def n_vectors(self) -> int:
        """Number of label vectors: the labels, the control task and the permutations."""
        return 1 + (self.control is not None) + len(self.null)


@dataclass(frozen=True)
class _SiteResult:
    """One target at one site; the fields are those of ``LayerSweep`` without its site axis."""

    constant: bool
    scores: NDArray[np.float64]
    null: NDArray[np.float64]
    certificate: NDArray[np.float64]
    penalty: NDArray[np.float64]
    control: float = np.nan
    coef: NDArray[np.float64] | None = None
    intercept: NDArray[np.float64] | None = None
    uncertified: tuple[UncertifiedFit, ...] = ()

    def at(self, site: str) -> "_SiteResult":
        """The result with the site's name in its uncertified fits."""
        fits = tuple(replace(fit, site=site) for fit in self.uncertified)
        return replace(self, uncertified=fits)


def _plan(
    labels: Any,
    n: int,
    entities: NDArray[np.int64],
    ungrouped: bool,
    cv: Any,
    rebalance: bool,
    permutations: int,
    control: Any,
    seed: int,
    name: str,
) -> _Plan:
    classes, codes = validate_labels(labels, n)
    folds = as_folds(cv, codes, None if ungrouped else entities, seed)
    check_folds(folds, codes, classes)
    for fold in range(len(folds)):
        shared = set(entities[folds.train[fold]]) & set(entities[folds.test[fold]])
        if shared:
            raise InputError(
                f"fold {fold} trains on and scores rows of the same group",
                fix="Split by group, or drop groups= to treat rows as independent",
            )
    unbalanced_folds = folds
    if rebalance:
        folds = rebalanced(folds, codes, seed)
        check_folds(folds, codes, classes)
    rng = numpy_rng(seed, "permutations", name)
    null = permuted_labels(codes, entities, folds, permutations, rng)
    # Balance depends on the labels, so every permutation needs its own folds.
    null_folds = (
        tuple(rebalanced(unbalanced_folds, null_labels, seed) for null_labels in null)
        if rebalance
        else ()
    )
    control_codes = None
    if control is not None:
        kinds = label_values(control)
        if kinds.shape != (n,):
            raise InputError("control must name one kind a row", got=str(kinds.shape))
        control_codes = control_labels(codes, kinds, folds, numpy_rng(seed, "control", name))
    return _Plan(classes, codes, folds, entities, null, null_folds, control_codes)


@dataclass(frozen=True)
class _Settings:
    """Arguments of ``sweep`` that are the same at every site."""

    probe: LinearProbe
    penalties: Sequence[float] | None
    coefficients: bool
    memory: int
    seed: int


def _one_site(
    x: Tensor, plan: _Plan, settings: _Settings, pace: Pace, advance: Advance
) -> _SiteResult:
    """Scores of the real, control and permuted labels at one site."""
    probe, coefficients = settings.probe, settings.coefficients
    classes, n = len(plan.classes), len(x)
    columns = 1 if classes == 2 else classes
    n_folds = len(plan.folds)
    centered = x - x.mean(0)
    noise = 1e-6 * float(x.abs().max()) if x.numel() else 0.0
    if float(centered.abs().max()) <= noise:
        # Equal rows: the pooled AUC would be an artifact of class counts.
        zero_scores = np.zeros((columns, n))
        zero_scores[:, ~plan.folds.test.any(0)] = np.nan
        advance(plan.n_vectors)
        return _SiteResult(
            constant=True,
            scores=zero_scores,
            null=np.full(len(plan.null), 0.5),
            certificate=np.zeros(n_folds),
            penalty=np.full(n_folds, np.nan),
            coef=np.zeros((n_folds, columns, x.shape[1])) if coefficients else None,
            intercept=np.zeros((n_folds, columns)) if coefficients else None,
        )
    label_rows = [plan.codes[None]]
    if plan.control is not None:
        label_rows.append(plan.control[None])
    label_rows.append(plan.null)
    codes = torch.from_numpy(np.concatenate(label_rows)).to(x.device)
    n_main = 1 + (plan.control is not None)
    names = ["labels", "control task"][:n_main]
    names += [f"permutation {i}" for i in range(len(plan.null))]
    uncertified: list[UncertifiedFit] = []

    def fit(selection: slice, folds: Folds, with_probes: bool):
        if settings.penalties is None:
            held_out = probe.held_out(
                x,
                codes[selection],
                classes,
                folds,
                coefficients=with_probes,
                memory=settings.memory,
            )
            return held_out, np.full(len(folds), np.nan)
        return nested_held_out(
            probe,
            x,
            codes[selection],
            classes,
            folds,
            plan.inner_groups,
            settings.penalties,
            settings.seed,
            with_probes,
            settings.memory,
        )

    def score(selection: slice, folds: Folds, with_probes: bool = False):
        held_out, penalty = fit(selection, folds, with_probes)
        for each in held_out.uncertified:
            uncertified.append(replace(each, name=names[selection][each.label]))
        advance(len(held_out.scores))
        return held_out, penalty

    def measure(count: int) -> int:
        n_pilots = min(count, len(plan.null)) or 1
        first = n_main if len(plan.null) else 0
        fit(slice(first, first + n_pilots), plan.folds, False)
        return n_pilots

    one_by_one = isinstance(probe, ScikitProbe)
    if one_by_one and not pace.is_known:
        begun = perf_counter()
        one_fold = Folds(plan.folds.train[:1], plan.folds.test[:1], "first fold")
        fit(slice(1), one_fold, False)
        seconds = perf_counter() - begun
        pace.say(seconds * n_folds, pace.n_vectors)
    begun = perf_counter()
    main, penalty = score(slice(n_main), plan.folds, coefficients)
    pace.estimate((perf_counter() - begun) / n_main, n_main, measure)
    null_scores = None
    if plan.null_folds or (one_by_one and len(plan.null)):
        own_folds = plan.null_folds or [plan.folds] * len(plan.null)
        null_parts = [
            score(slice(n_main + i, n_main + i + 1), folds)[0].scores
            for i, folds in enumerate(own_folds)
        ]
        null_scores = torch.cat(null_parts)
    elif len(plan.null):
        null_scores = score(slice(n_main, None), plan.folds)[0].scores
    scored = torch.as_tensor(plan.folds.test.any(0), device=x.device)
    null = np.zeros(0)
    if null_scores is not None:
        values = null_scores[:, :, scored]
        null = metrics.auc(values, codes[n_main:][:, scored], classes).cpu().numpy()
    control = float("nan")
    if plan.control is not None:
        values = main.scores[1:2][:, :, scored]
        control = float(metrics.auc(values, codes[1:2][:, scored], classes)[0])

    def stored(part: Tensor | None) -> NDArray[np.float64] | None:
        return part[0].cpu().numpy() if coefficients and part is not None else None

    return _SiteResult(
        constant=False,
        scores=main.scores[0].cpu().numpy(),
        null=null,
        certificate=main.certificate[0].cpu().numpy(),
        penalty=penalty,
        control=control,
        coef=stored(main.coef),
        intercept=stored(main.intercept),
        uncertified=tuple(uncertified),
    )


def _gather(
    name: str,
    plan: _Plan,
    sites: tuple[str, ...],
    results: list[_SiteResult],
    probe: LinearProbe,
    entities: NDArray[np.int64],
    draws: int,
    seed: int,
) -> LayerSweep:
    """Skill, intervals and p-values of one target over all sites."""
    classes = len(plan.classes)
    scores = np.stack([site.scores for site in results])
    scored = plan.folds.test.any(0)
    codes = plan.codes[scored]
    groups = np.unique(entities[scored], return_inverse=True)[1]
    rng = numpy_rng(seed, "bootstrap", name)
    weights = metrics.cluster_bootstrap_weights(groups, draws, rng)
    draw_size = weights.sum(1)
    values = torch.from_numpy(np.ascontiguousarray(scores[:, :, scored]))
    site_codes = torch.from_numpy(codes).expand(len(sites), -1)
    auc = metrics.auc(values, site_codes, classes).numpy()
    correct = metrics.accuracy(values, site_codes).double().numpy()
    loss = metrics.log_loss(values, site_codes).numpy()
    if not gives_log_odds(probe):
        loss = np.full_like(loss, np.nan)
    interval = metrics.percentile_interval

    def bootstrap_intervals(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([interval(weights @ row / draw_size) for row in rows])

    auc_interval = np.array(
        [interval(metrics.weighted_auc(site, codes, classes, weights)) for site in values.numpy()]
    )
    null = np.stack([site.null for site in results], axis=1)
    p_site, p_value = np.full(len(sites), np.nan), float("nan")
    if len(null):
        null_max = null.max(1)
        n_exceeding = (null_max[:, None] >= auc - 1e-12).sum(0)
        p_site = (1 + n_exceeding) / (1 + len(null))
        p_value = float(p_site.min())
    control = np.array([site.control for site in results])
    coefs = [site.coef for site in results if site.coef is not None]
    intercepts = [site.intercept for site in results if site.intercept is not None]
    equal_shapes = len({coef.shape for coef in coefs}) == 1
    return LayerSweep(
        target=name,
        sites=sites,
        scheme=plan.folds.name,
        classes=plan.classes,
        scores=scores,
        auc=auc,
        auc_interval=auc_interval,
        accuracy=correct.mean(1),
        accuracy_interval=bootstrap_intervals(correct),
        log_loss=loss.mean(1),
        log_loss_interval=bootstrap_intervals(loss),
        null_auc=null,
        p_site=p_site,
        p_value=p_value,
        control_auc=control,
        selectivity=auc - control,
        constant=np.array([site.constant for site in results]),
        penalty=np.stack([site.penalty for site in results]),
        certificate=np.stack([site.certificate for site in results]),
        coef=np.stack(coefs) if equal_shapes else None,
        intercept=np.stack(intercepts) if equal_shapes else None,
        unscored=int((~scored).sum()),
        uncertified=tuple(fit for site in results for fit in site.uncertified),
    )
