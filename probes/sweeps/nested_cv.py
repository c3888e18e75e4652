"""Nested cross-validation: the penalty is chosen inside each fold's training rows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evidence.errors import InputError
from probes.estimators.base import HeldOut, LinearProbe
from probes.estimators.scikit_learn import ScikitProbe, gives_log_odds
from probes.solvers.uncertified import UncertifiedFit
from probes.splits import metrics
from probes.splits.folds import Folds, k_fold, missing_class

PENALTY_NAMES = ("C", "alpha", "shrinkage")
INNER_FOLDS = 5


def penalty_name(probe: LinearProbe) -> str:
    """Name of the probe's penalty parameter.

    Raises:
        InputError: it has none.
    """
    for name in PENALTY_NAMES:
        if name in probe.get_params():
            return name
    named = probe.estimator if isinstance(probe, ScikitProbe) else probe
    raise InputError(f"{type(named).__name__} has no penalty to choose", fix="Leave out penalties=")


def nested_held_out(
    probe: LinearProbe,
    x: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
    groups: NDArray[np.int64],
    penalties: Sequence[float],
    seed: int,
    coefficients: bool,
    memory: int,
) -> tuple[HeldOut, NDArray[np.float64]]:
    """Held-out scores with the penalty that each fold's own training rows prefer.

    Inner folds split the training groups. The criterion is held-out log-loss for probes whose
    scores are log-odds, AUC for the others.

    Returns:
        The scores, and (fold,) the penalty chosen for the first label vector. Uncertified inner
        fits are listed with the others.
    """
    name = penalty_name(probe)
    if len(penalties) == 0:
        raise InputError("there are no penalties to choose from")
    n_labels = len(codes)
    uncertified: list[UncertifiedFit] = []
    skill = np.zeros((len(penalties), n_labels, len(folds)))
    for fold in range(len(folds)):
        rows = np.flatnonzero(folds.train[fold])
        train_codes = codes[:, torch.from_numpy(rows).to(codes.device)]
        inner = _inner_folds(train_codes[0].cpu().numpy(), groups[rows], seed)
        usable = [
            label
            for label in range(n_labels)
            if missing_class(inner, train_codes[label].cpu().numpy()) is None
            and int(train_codes[label].max()) == classes - 1
        ]
        for i_penalty, value in enumerate(penalties):
            if not usable:
                break
            candidate = probe.copy(**{name: value})
            held_out = candidate.held_out(
                x[rows], train_codes[usable], classes, inner, memory=memory
            )
            for fit in held_out.uncertified:
                inner_name = f"inner fold {fit.fold} at {name} = {value:g}"
                label = usable[fit.label]
                uncertified.append(replace(fit, fold=fold, label=label, inner=inner_name))
            if gives_log_odds(probe):
                loss = metrics.log_loss(held_out.scores, train_codes[usable])
                skill[i_penalty, usable, fold] = -loss.mean(1).cpu().numpy()
            else:
                auc = metrics.auc(held_out.scores, train_codes[usable], classes)
                skill[i_penalty, usable, fold] = auc.cpu().numpy()
    best = skill.argmax(0)  # (label, fold)
    out: HeldOut | None = None
    for i_penalty, value in enumerate(penalties):
        chosen_folds = np.flatnonzero((best == i_penalty).any(0))
        if len(chosen_folds) == 0:
            continue
        sub_folds = Folds(folds.train[chosen_folds], folds.test[chosen_folds], folds.name)
        candidate = probe.copy(**{name: value})
        held_out = candidate.held_out(
            x, codes, classes, sub_folds, coefficients=coefficients, memory=memory
        )
        if out is None:
            out = _empty_like(held_out, len(folds))
        for fit in held_out.uncertified:
            fold = int(chosen_folds[fit.fold])
            if best[fit.label, fold] == i_penalty:
                uncertified.append(replace(fit, fold=fold))
        for i_fold, fold in enumerate(chosen_folds):
            chosen = torch.from_numpy(np.flatnonzero(best[:, fold] == i_penalty))
            test = torch.from_numpy(np.flatnonzero(folds.test[fold]))
            target_idx = chosen[:, None], slice(None), test
            out.scores[target_idx] = held_out.scores[target_idx]
            out.certificate[chosen, fold] = held_out.certificate[chosen, i_fold]
            if out.coef is not None and out.intercept is not None:
                out.coef[chosen, fold] = held_out.coef[chosen, i_fold]  # pyright: ignore
                out.intercept[chosen, fold] = held_out.intercept[chosen, i_fold]  # pyright: ignore
    assert out is not None
    out = replace(out, uncertified=tuple(uncertified))
    return out, np.asarray(penalties, dtype=float)[best[0]]


def _inner_folds(codes: NDArray, groups: NDArray, seed: int) -> Folds:
    entities = np.unique(groups, return_inverse=True)[1]
    n_folds = min(INNER_FOLDS, int(entities.max()) + 1)
    return k_fold(entities, codes, n_folds, seed)


def _empty_like(held_out: HeldOut, n_folds: int) -> HeldOut:
    def wide(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        return part.new_zeros((len(part), n_folds, *part.shape[2:]))

    return HeldOut(
        torch.full_like(held_out.scores, torch.nan),
        held_out.certificate.new_zeros((len(held_out.certificate), n_folds)),
        wide(held_out.coef),
        wide(held_out.intercept),
    )
