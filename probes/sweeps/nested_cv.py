"""The penalty chosen inside each fold, never on the rows it is scored on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evidence.errors import InputError
from probes.estimators.base import HeldOut, LinearProbe, ProbabilityMixin
from probes.solvers.uncertified import UncertifiedFit
from probes.splits import metrics
from probes.splits.folds import Folds, k_fold, missing_class

PENALTY_NAMES = ("C", "alpha", "shrinkage")
INNER_FOLDS = 5


def penalty_name(probe: LinearProbe) -> str:
    """The parameter that is the probe's penalty.

    Raises:
        InputError: it has none.
    """
    for name in PENALTY_NAMES:
        if name in probe.get_params():
            return name
    raise InputError(
        f"{type(probe).__name__} has no penalty to choose", fix="Leave out penalties="
    )


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
    """Held-out scores under the penalty each fold's own training rows prefer.

    Inner folds split the training groups; the criterion is held-out log-loss for
    probes whose scores are log-odds, AUC for the others.

    Returns:
        The scores, and (fold,) the penalty chosen for the first label vector. Fits
        without a certificate that chose a penalty are named with the others.
    """
    name = penalty_name(probe)
    if len(penalties) == 0:
        raise InputError("there are no penalties to choose from")
    labels = len(codes)
    uncertified: list[UncertifiedFit] = []
    skill = np.zeros((len(penalties), labels, len(folds)))
    for fold in range(len(folds)):
        rows = np.flatnonzero(folds.train[fold])
        inside = codes[:, torch.from_numpy(rows).to(codes.device)]
        inner = _inner_folds(inside[0].cpu().numpy(), groups[rows], seed)
        usable = [
            label
            for label in range(labels)
            if missing_class(inner, inside[label].cpu().numpy()) is None
            and int(inside[label].max()) == classes - 1
        ]
        for place, value in enumerate(penalties):
            if not usable:
                break
            trial = probe.copy(**{name: value})
            result = trial.held_out(
                x[rows], inside[usable], classes, inner, memory=memory
            )
            for each in result.uncertified:
                which = f"inner fold {each.fold} at {name} = {value:g}"
                label = usable[each.label]
                uncertified.append(replace(each, fold=fold, label=label, inner=which))
            if isinstance(probe, ProbabilityMixin):
                loss = metrics.log_loss(result.scores, inside[usable])
                skill[place, usable, fold] = -loss.mean(1).cpu().numpy()
            else:
                area = metrics.auc(result.scores, inside[usable], classes)
                skill[place, usable, fold] = area.cpu().numpy()
    best = skill.argmax(0)  # (label, fold)
    out: HeldOut | None = None
    for place, value in enumerate(penalties):
        wanted = np.flatnonzero((best == place).any(0))
        if len(wanted) == 0:
            continue
        part = Folds(folds.train[wanted], folds.test[wanted], folds.name)
        trial = probe.copy(**{name: value})
        result = trial.held_out(
            x, codes, classes, part, coefficients=coefficients, memory=memory
        )
        if out is None:
            out = _empty_like(result, len(folds))
        for each in result.uncertified:
            fold = int(wanted[each.fold])
            if best[each.label, fold] == place:
                uncertified.append(replace(each, fold=fold))
        for slot, fold in enumerate(wanted):
            chosen = torch.from_numpy(np.flatnonzero(best[:, fold] == place))
            test = torch.from_numpy(np.flatnonzero(folds.test[fold]))
            grid = chosen[:, None], slice(None), test
            out.scores[grid] = result.scores[grid]
            out.certificate[chosen, fold] = result.certificate[chosen, slot]
            if out.coef is not None and out.intercept is not None:
                out.coef[chosen, fold] = result.coef[chosen, slot]  # pyright: ignore
                out.intercept[chosen, fold] = result.intercept[chosen, slot]  # pyright: ignore
    assert out is not None
    out = replace(out, uncertified=tuple(uncertified))
    return out, np.asarray(penalties, dtype=float)[best[0]]


def _inner_folds(codes: NDArray, groups: NDArray, seed: int) -> Folds:
    local = np.unique(groups, return_inverse=True)[1]
    count = min(INNER_FOLDS, int(local.max()) + 1)
    return k_fold(local, codes, count, seed)


def _empty_like(like: HeldOut, folds: int) -> HeldOut:
    def wide(part: Tensor | None) -> Tensor | None:
        if part is None:
            return None
        return part.new_zeros((len(part), folds, *part.shape[2:]))

    return HeldOut(
        torch.full_like(like.scores, torch.nan),
        like.certificate.new_zeros((len(like.certificate), folds)),
        wide(like.coef),
        wide(like.intercept),
    )
