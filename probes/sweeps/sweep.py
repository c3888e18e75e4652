"""One probe over every site, with the controls that make its skill mean something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from evidence.arrays import validate_labels
from evidence.errors import InputError
from evidence.progress import SILENT, Progress
from evidence.seeds import numpy_rng
from probes.estimators.base import LinearProbe, ProbabilityMixin
from probes.estimators.logistic import LogisticProbe
from probes.solvers.uncertified import UncertifiedFit, warn_uncertified
from probes.splits import metrics
from probes.splits.folds import (
    Folds,
    check_folds,
    from_splits,
    group_codes,
    k_fold,
    leave_one_group_out,
    rebalanced,
)
from probes.splits.nulls import control_labels, permuted_labels
from probes.sweeps.layer_sweep import LayerSweep
from probes.sweeps.nested_cv import nested_held_out
from probes.sweeps.site_source import SiteStore, open_source


def sweep(
    activations: ArrayLike | Tensor | SiteStore,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    targets: Mapping[str, ArrayLike] | None = None,
    probe: LinearProbe | None = None,
    cv: str | int | Folds | Sequence[tuple] = "leave-one-group-out",
    penalties: Sequence[float] | None = None,
    permutations: int = 0,
    control: ArrayLike | None = None,
    rebalance: bool = False,
    coefficients: bool = False,
    draws: int = 1000,
    memory: int = 1 << 30,
    seed: int = 0,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Score every row at every site by probes that never saw its group.

    Args:
        activations: (site, row, d), or an object with ``sites`` and ``site(name)``
            whose sites are read one at a time.
        labels: (row,) of any sortable kind.
        groups: (row,) entity of each row; folds, permutations and intervals go by
            whole groups. Every row its own where None.
        targets: Several label vectors by name, instead of ``labels``.
        probe: The estimator; ``LogisticProbe()`` by default.
        cv: "leave-one-group-out", a number of folds dealt by group, ``Folds``, or
            (train, test) index pairs as scikit-learn's splitters give.
        penalties: Values of the probe's penalty (``C``, ``alpha`` or ``shrinkage``)
            to choose from inside each fold's training groups.
        permutations: Size of the permutation null; the same permutations run at all
            sites, so the maximum over sites is that of one experiment.
        control: (row,) kind of each row (its token, template, ...) for the control
            task: a random label for each kind.
        rebalance: Keep class shares in every fold's training rows; see
            ``probes.splits.folds.rebalanced``.
        coefficients: Keep every fold's probe, in raw activation units.
        draws: Bootstrap draws of whole groups for the intervals.
        memory: Bytes to stay within beside the activations.
        seed: Of folds, permutations, control task and bootstrap.
        device: Where to compute, such as "cuda"; where the activations are if None.
        progress: Shows one unit a site and target.

    Returns:
        A ``LayerSweep``; with ``targets`` a dict of them by name.

    Raises:
        InputError: shapes that do not fit, NaN activations, or a class missing from a
            fold.

    Warns:
        UncertifiedWarning: fits that are not certified to be at their optimum. They
            are named in ``uncertified``, and nothing else is lost.
    """
    source = open_source(activations)
    if (labels is None) == (targets is None):
        raise InputError("give either labels or targets")
    named = {"label": labels} if targets is None else dict(targets)
    if not named:
        raise InputError("there are no targets")
    probe = LogisticProbe() if probe is None else probe
    n = source.n_rows
    entity = group_codes(groups, n)
    plans = {
        name: _plan(
            values,
            n,
            entity,
            groups is None,
            cv,
            rebalance,
            permutations,
            control,
            seed,
            name,
        )
        for name, values in named.items()
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in named}
    with progress.task("probing sites", len(source.names) * len(named)) as advance:
        for name_of_site in source.names:
            x = source.read(name_of_site, device)
            for name, plan in plans.items():
                site = _one_site(x, plan, probe, penalties, coefficients, memory, seed)
                lost = site["uncertified"]
                site["uncertified"] = [replace(fit, site=name_of_site) for fit in lost]
                found[name].append(site)
                advance(1)
    sweeps = {
        name: _gather(name, plan, source.names, found[name], probe, entity, draws, seed)
        for name, plan in plans.items()
    }
    warn_uncertified([fit for each in sweeps.values() for fit in each.uncertified])
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


def _plan(
    labels: Any,
    n: int,
    entity: NDArray[np.int64],
    single: bool,
    cv: Any,
    rebalance: bool,
    permutations: int,
    control: Any,
    seed: int,
    name: str,
) -> _Plan:
    classes, codes = validate_labels(labels, n)
    groups = None if single else entity
    if isinstance(cv, Folds):
        folds = cv
    elif isinstance(cv, str):
        if cv != "leave-one-group-out":
            raise InputError(
                "unknown cv", expected="'leave-one-group-out' or a number", got=cv
            )
        folds = leave_one_group_out(groups, n)
    elif isinstance(cv, int):
        folds = k_fold(groups, codes, cv, seed)
    else:
        folds = from_splits(cv, n)
    check_folds(folds, codes, classes)
    for fold in range(len(folds)):
        shared = set(entity[folds.train[fold]]) & set(entity[folds.test[fold]])
        if shared:
            raise InputError(
                f"fold {fold} fits and scores rows of one group",
                fix="Split by group, or drop groups= to treat rows as independent",
            )
    plain = folds
    if rebalance:
        folds = rebalanced(folds, codes, seed)
        check_folds(folds, codes, classes)
    rng = numpy_rng(seed, "permutations", name)
    null = permuted_labels(codes, entity, folds, permutations, rng)
    # Balance depends on the labels, so every permutation needs folds of its own.
    own = tuple(rebalanced(plain, row, seed) for row in null) if rebalance else ()
    task = None
    if control is not None:
        kinds = np.asarray(control)
        if kinds.shape != (n,):
            raise InputError("control must name one kind a row", got=str(kinds.shape))
        task = control_labels(codes, kinds, folds, numpy_rng(seed, "control", name))
    return _Plan(classes, codes, folds, entity, null, own, task)


def _one_site(
    x: Tensor,
    plan: _Plan,
    probe: LinearProbe,
    penalties: Sequence[float] | None,
    coefficients: bool,
    memory: int,
    seed: int,
) -> dict[str, Any]:
    """Scores of the real, control and permuted labels at one site."""
    classes, n = len(plan.classes), len(x)
    columns = 1 if classes == 2 else classes
    folds = len(plan.folds)
    centred = x - x.mean(0)
    tiny = 1e-6 * float(x.abs().max()) if x.numel() else 0.0
    if float(centred.abs().max()) <= tiny:
        # Equal rows: a pooled AUC would be an artefact of class counts, even 0.
        nothing = np.zeros((columns, n))
        nothing[:, ~plan.folds.test.any(0)] = np.nan
        return {
            "constant": True,
            "scores": nothing,
            "control": None,
            "null": np.full(len(plan.null), 0.5),
            "certificate": np.zeros(folds),
            "penalty": np.full(folds, np.nan),
            "coef": np.zeros((folds, columns, x.shape[1])) if coefficients else None,
            "intercept": np.zeros((folds, columns)) if coefficients else None,
            "uncertified": [],
        }
    stacked = [plan.codes[None]]
    if plan.control is not None:
        stacked.append(plan.control[None])
    stacked.append(plan.null)
    codes = torch.from_numpy(np.concatenate(stacked)).to(x.device)
    first = 1 + (plan.control is not None)
    names = ["labels", "control task"][:first]
    names += [f"permutation {place}" for place in range(len(plan.null))]
    uncertified: list[UncertifiedFit] = []

    def score(part: slice, folds: Folds, keep: bool):
        penalty = np.full(len(folds), np.nan)
        if penalties is None:
            found = probe.held_out(
                x, codes[part], classes, folds, coefficients=keep, memory=memory
            )
        else:
            found, penalty = nested_held_out(
                probe,
                x,
                codes[part],
                classes,
                folds,
                plan.inner_groups,
                penalties,
                seed,
                keep,
                memory,
            )
        for fit in found.uncertified:
            uncertified.append(replace(fit, name=names[part][fit.label]))
        return found, penalty

    main, penalty = score(slice(first), plan.folds, coefficients)
    rest = None
    if plan.null_folds:
        parts = [
            score(slice(first + place, first + place + 1), own, False)[0].scores
            for place, own in enumerate(plan.null_folds)
        ]
        rest = torch.cat(parts)
    elif len(plan.null):
        rest = score(slice(first, None), plan.folds, False)[0].scores
    scored = torch.as_tensor(plan.folds.test.any(0), device=x.device)
    null = np.zeros(0)
    if rest is not None:
        values = rest[:, :, scored]
        null = metrics.auc(values, codes[first:][:, scored], classes).cpu().numpy()
    control = None
    if plan.control is not None:
        values = main.scores[1:2][:, :, scored]
        control = float(metrics.auc(values, codes[1:2][:, scored], classes)[0])
    keep = coefficients and main.coef is not None and main.intercept is not None
    return {
        "constant": False,
        "scores": main.scores[0].cpu().numpy(),
        "control": control,
        "null": null,
        "certificate": main.certificate[0].cpu().numpy(),
        "penalty": penalty,
        "coef": main.coef[0].cpu().numpy() if keep else None,  # pyright: ignore
        "intercept": main.intercept[0].cpu().numpy() if keep else None,  # pyright: ignore
        "uncertified": uncertified,
    }


def _gather(
    name: str,
    plan: _Plan,
    sites: tuple[str, ...],
    found: list[dict[str, Any]],
    probe: LinearProbe,
    entity: NDArray[np.int64],
    draws: int,
    seed: int,
) -> LayerSweep:
    """Skill, intervals and p-values of one target over all sites."""
    classes = len(plan.classes)
    scores = np.stack([site["scores"] for site in found])
    scored = plan.folds.test.any(0)
    codes = plan.codes[scored]
    groups = np.unique(entity[scored], return_inverse=True)[1]
    rng = numpy_rng(seed, "bootstrap", name)
    weights = metrics.cluster_bootstrap_weights(groups, draws, rng)
    size = weights.sum(1)
    values = torch.from_numpy(np.ascontiguousarray(scores[:, :, scored]))
    many = torch.from_numpy(codes).expand(len(sites), -1)
    area = metrics.auc(values, many, classes).numpy()
    right = metrics.accuracy(values, many).double().numpy()
    loss = metrics.log_loss(values, many).numpy()
    if not isinstance(probe, ProbabilityMixin):
        loss = np.full_like(loss, np.nan)
    bounds = metrics.percentile_interval

    def spread(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([bounds(weights @ row / size) for row in rows])

    area_bounds = np.array(
        [
            bounds(metrics.weighted_auc(site, codes, classes, weights))
            for site in values.numpy()
        ]
    )
    null = np.stack([site["null"] for site in found], axis=1)
    p_site, p_value = np.full(len(sites), np.nan), float("nan")
    if len(null):
        top = null.max(1)
        beaten = (top[:, None] >= area - 1e-12).sum(0)
        p_site = (1 + beaten) / (1 + len(null))
        p_value = float(p_site.min())
    control = np.array(
        [np.nan if site["control"] is None else site["control"] for site in found]
    )
    kept = found[0]["coef"] is not None
    same = kept and len({site["coef"].shape for site in found}) == 1
    return LayerSweep(
        target=name,
        sites=sites,
        scheme=plan.folds.name,
        classes=plan.classes,
        scores=scores,
        auc=area,
        auc_interval=area_bounds,
        accuracy=right.mean(1),
        accuracy_interval=spread(right),
        log_loss=loss.mean(1),
        log_loss_interval=spread(loss),
        null_auc=null,
        p_site=p_site,
        p_value=p_value,
        control_auc=control,
        selectivity=area - control,
        constant=np.array([site["constant"] for site in found]),
        penalty=np.stack([site["penalty"] for site in found]),
        certificate=np.stack([site["certificate"] for site in found]),
        coef=np.stack([site["coef"] for site in found]) if same else None,
        intercept=np.stack([site["intercept"] for site in found]) if same else None,
        unscored=int((~scored).sum()),
        uncertified=tuple(fit for site in found for fit in site["uncertified"]),
    )
