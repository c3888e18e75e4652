"""Logistic fits of every fold and label vector of one site, exact to a certificate.

Two routes lead to the same optimum. *Shared*: one factor, from the fit on all rows,
serves all folds, each with its own rows taken out; best for few label vectors and
many folds. *Each fold*: a factor for each fold's training rows serves all label
vectors; best for permutations, and needed where the rows are standardised within the
fold, as each fold then has its own Gram matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.errors import InputError
from probes.engine import ACCEPTED, minimise
from probes.folds import Folds
from probes.fullfit import row_fit
from probes.losses import Loss
from probes.operators import (
    Operator,
    factor_features,
    factor_gram,
    floor_weight,
    gram_of,
    remove_rows,
)
from probes.problems import Batch, Work
from probes.threads import few_threads

SHARED_LABELS = 8
"""From so many label vectors a factor for each fold pays."""
REFACTORS = 6
"""Most factors tried to start a fit with many rows."""
PILOTS = 32
"""Up to so many label vectors are all fitted on all rows to start their folds."""


@dataclass(frozen=True)
class LogisticOptions:
    """What is fitted.

    Attributes:
        C: Inverse penalty as in scikit-learn: 0.5 ||W||^2 + C sum of losses.
        balanced: Weigh classes by n / (classes x count), within the training rows.
        class_weight: (class,) fixed class weights instead.
        standardize: "fold" scales each column by its training rows' standard
            deviation, "all" by that of all rows, None not at all.
        precision: Type of the answer; float32 has 1e-4 for float64's 1e-8.
        mixed: Whether float64 answers may use float32 inside their inner products.
        memory: Bytes the solver may use beyond its input.
    """

    C: float = 1.0
    balanced: bool = False
    class_weight: tuple[float, ...] | None = None
    standardize: str | None = None
    precision: torch.dtype = torch.float64
    mixed: bool = True
    memory: int = 1 << 30


@dataclass(frozen=True)
class CrossFit:
    """Held-out scores and, if asked for, the probes.

    Attributes:
        scores: (label, class or 1, row) held-out decision values, NaN where no fold
            scores the row.
        certificate: (label, fold) distance to the optimum, relative.
        coef: (label, fold, class or 1, d) in units per unit of the rows given.
        intercept: (label, fold, class or 1).
        work: What was spent.
    """

    scores: Tensor
    certificate: Tensor
    coef: Tensor | None
    intercept: Tensor | None
    work: Work

    @property
    def unsolved(self) -> int:
        """How many fits did not reach the tolerance of their type."""
        return int((~(self.certificate <= ACCEPTED[self.scores.dtype])).sum())


def one_hot(codes: Tensor, classes: int) -> Tensor:
    """(label, row) codes -> (label, class or 1, row) float64 targets."""
    if classes == 2:
        return codes[:, None, :].double()
    wanted = torch.arange(classes, device=codes.device)[:, None]
    return (codes[:, None, :] == wanted).double()


def row_weights(
    codes: Tensor, classes: int, base: Tensor, options: LogisticOptions
) -> Tensor:
    """Loss weights with C and class weights in.

    Args:
        codes: (problem or 1, row) class codes.
        classes: Number of classes.
        base: (problem or 1, row) sample weights, 0 where a row does not train.
        options: Which class weights.

    Returns:
        (problem, 1, row) float64.
    """
    weight = base
    if options.balanced:
        factors = torch.zeros(
            max(len(codes), len(base)), classes, dtype=base.dtype, device=base.device
        )
        for code in range(classes):
            factors[:, code] = (base * (codes == code)).sum(1)
        factors = base.sum(1, keepdim=True) / (classes * factors.clamp(min=1e-300))
        weight = base * factors.gather(1, codes.expand(len(factors), -1))
    elif options.class_weight is not None:
        weight = base * base.new_tensor(options.class_weight)[codes]
    return (weight * options.C)[:, None, :]


def crossfit(
    x: Tensor,
    codes: Tensor,
    classes: int,
    folds: Folds,
    options: LogisticOptions,
    *,
    sample_weight: Tensor | None = None,
    coefficients: bool = False,
) -> CrossFit:
    """Fit and score every fold for every label vector.

    Args:
        x: (row, d) one site; converted to float64.
        codes: (label, row) class codes below ``classes``.
        classes: Number of classes, every one present in every fold's training rows.
        folds: Which rows fit and which are scored.
        options: The model.
        sample_weight: (row,) >= 0.
        coefficients: Whether to return the probes too.

    Raises:
        InputError: the memory budget is too small for even one problem.
    """
    given, x = x, x.to(torch.float64)
    mean = x.mean(0)
    # A converted copy is ours to change; the caller's rows are not.
    noise = 16 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    x = x - mean if x is given else x.sub_(mean)
    # What centring leaves of a constant column is rounding, not a feature.
    x[:, x.abs().amax(0) <= noise] = 0.0
    n, d = x.shape
    base = torch.ones(n, dtype=x.dtype, device=x.device)
    base = base if sample_weight is None else sample_weight.to(base)
    scale = None
    if options.standardize == "all":
        scale = spread(x, base)
        x = x / scale
    job = _Job(x, codes, classes, folds, options, base, coefficients)
    wide = n <= 2 * (d + 1)
    limit = SHARED_LABELS if wide else max(SHARED_LABELS, d // 30)
    with few_threads(n * job.columns):
        if options.standardize == "fold" or len(codes) >= limit:
            _each_fold(job)
        else:
            for label in range(len(codes)):
                _shared(job, label)
    if job.coef is not None and job.intercept is not None:
        job.coef /= 1 if scale is None else scale
        job.intercept -= job.coef @ mean
    return CrossFit(job.scores, job.certificate, job.coef, job.intercept, job.work)


def spread(x: Tensor, weight: Tensor) -> Tensor:
    """(d,) weighted standard deviation of each column, 1 where one is constant."""
    share = weight / weight.sum()
    deviation = (share @ (x - share @ x).square()).sqrt()
    tiny = 10 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return torch.where(deviation > tiny, deviation, torch.ones_like(deviation))


class _Job:
    """Inputs of one call and the arrays its answers go to."""

    def __init__(self, x, codes, classes, folds, options, base, coefficients):
        self.x, self.codes, self.classes, self.folds = x, codes, classes, folds
        self.options, self.base, self.work = options, base, Work()
        self.columns = 1 if classes == 2 else classes
        self.wide = len(x) <= 2 * (x.shape[1] + 1)
        labels, n = codes.shape
        dtype, device = options.precision, x.device
        shape = (labels, len(folds), self.columns)
        self.scores = torch.full(
            (labels, self.columns, n), torch.nan, dtype=dtype, device=device
        )
        self.certificate = torch.full(shape[:2], torch.inf, device=device).double()
        self.coef = self.intercept = None
        if coefficients:
            self.coef = x.new_zeros((*shape, x.shape[1]))
            self.intercept = x.new_zeros(shape)
        self.train = torch.as_tensor(folds.train, device=device)
        self.test = torch.as_tensor(folds.test, device=device)

    def factor(self, rows: Tensor, weight: Tensor, other: Tensor | None = None):
        """The cheaper form of the factor, and the Gram matrix where it has one."""
        if not self.wide:
            return factor_features(rows, weight, other)
        across = None if other is None else other @ rows.T
        gram = gram_of(rows)
        return factor_gram(gram, floor_weight(weight, gram.diagonal()), across)

    def solve(self, batch: Batch, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Minimise in the precision asked for; ``mixed`` where float32 pays.

        Not with more rows than features: what of the residual the features cannot
        see does not shrink, and float32 rounds the rest against it, unseen by the
        certificate. A float32 answer is a float64 one rounded there.
        """
        if self.options.precision == torch.float32 and self.wide:
            dtype = torch.float32
            batch = Batch(
                batch.loss.to(dtype),
                batch.operator.to(dtype),
                batch.dual.to(dtype),
                batch.scores.to(dtype),
            )
        inner = torch.float32 if self.options.mixed and mixed else None
        # With many rows elimination is near: it beats conjugate gradients that stall.
        steps = 60 if self.wide else 12
        held, dual, certificate = minimise(
            batch, iterations=inner, steps=steps, work=self.work
        )
        return held.to(self.options.precision), dual, certificate

    def chunks(self, count: int, size: int, removed: int = 0) -> Iterator[slice]:
        """Slices of problems that keep the memory budget."""
        n = self.codes.shape[1]
        fixed = 8 * (2 * self.x.numel() + (4 * n * n if self.wide else 0))
        each = 8 * (16 * self.columns * size + 3 * removed * (size + removed))
        room = int((self.options.memory - fixed) // max(each, 1))
        if room < 1:
            raise InputError(
                "the memory budget is too small for one fit",
                expected=f"at least {fixed + each} bytes",
                got=f"{self.options.memory}",
                fix="Raise memory=",
            )
        for start in range(0, count, room):
            yield slice(start, min(start + room, count))

    def keep_probes(self, label, fold, dual, scores, weight, rows) -> None:
        """Store coefficients from alpha = c - w E and the intercept that fits E."""
        if self.coef is None or self.intercept is None:
            return
        alpha = (dual - weight * scores).double()
        coef = alpha @ rows
        rest = scores.double() - coef @ rows.T
        used = (weight > 0).double().expand_as(rest)
        self.coef[label, fold] = coef
        self.intercept[label, fold] = (rest * used).sum(-1) / used.sum(-1)


def _start_from_nothing(job: _Job, rows: Tensor, loss: Loss, target: float):
    """Fit all label vectors on all rows, roughly: factor, scores, alpha, curvature.

    Where classes are nearly separable most rows' curvature vanishes and a factor of
    constant weights is no use: it is replaced by that of the curvature found so far.
    """
    labels, columns, n = loss.target.shape
    weight = (0.1 * loss.weight).mean((0, 1)).clamp(min=1e-12)
    scores = alpha = rows.new_zeros((labels, columns, n))
    factor = job.factor(rows, weight)
    for turn in range(REFACTORS):
        operator = Operator(factor, factor.weight[None, None])
        # The same point in the new factor's terms: alpha = c - w E.
        dual = alpha + factor.weight * scores
        last = job.wide or turn + 1 == REFACTORS
        scores, dual, certificate = minimise(
            Batch(loss, operator, dual, operator(dual)),
            target=target,
            steps=60 if last else 8,
            fall_back=last,
            work=job.work,
        )
        alpha = dual - factor.weight * scores
        if last or bool((certificate <= target).all()):
            break
        weight = loss.curvature(loss.probabilities(scores)).mean((0, 1))
        factor = job.factor(rows, weight.clamp(min=1e-12))
    curvature = loss.curvature(loss.probabilities(scores)).mean(1)
    return factor, scores, alpha, curvature


def _shared(job: _Job, label: int) -> None:
    """All folds of one label vector on one factor."""
    x, folds, options = job.x, job.folds, job.options
    n = len(x)
    codes = job.codes[label : label + 1]
    target = one_hot(codes, job.classes)
    whole = Loss(target, row_weights(codes, job.classes, job.base[None], options))
    if job.wide and job.columns == 1:
        gram = gram_of(x)
        positive = whole.weight.clamp(min=1e-9 * float(whole.weight.max()))
        fit = row_fit(gram, Loss(target, positive))
        alpha, scores, curvature = fit.dual, fit.scores, fit.weight
        factor = factor_gram(gram, floor_weight(curvature, gram.diagonal()))
    else:
        factor, scores, alpha, curvature = _start_from_nothing(job, x, whole, 1e-3)
        alpha, scores = alpha[0], scores[0]
        factor = job.factor(x, curvature[0].clamp(min=1e-12))
    dual = alpha + factor.weight * scores
    out = (~job.train).nonzero()
    sizes = (~job.train).sum(1)
    widest = int(sizes.max())
    take_out = 0 < widest <= (n // 4 if job.wide else min(8, n // 4))
    rows = torch.zeros((len(folds), widest), dtype=torch.long, device=x.device)
    present = torch.arange(widest, device=x.device) < sizes[:, None]
    rows[present] = out[:, 1]
    for part in job.chunks(len(folds), n, widest if take_out else 0):
        train = job.train[part]
        weights = row_weights(codes, job.classes, job.base * train, options)
        if take_out:
            operator, first = remove_rows(factor, rows[part], present[part])
            pulled = alpha[:, rows[part]].permute(1, 2, 0)  # (fold, g, class)
            push = -(first @ pulled).transpose(1, 2)
            assert operator.removal is not None
            begin = scores + push @ operator.removal.strips
            start = (dual * train[:, None]).contiguous()
        else:
            operator = Operator(factor, factor.weight[None, None])
            start = dual.expand(len(train), -1, -1).clone()
            begin = scores.expand(len(train), -1, -1).clone()
        batch = Batch(Loss(target, weights), operator, start, begin)
        held, final, certificate = job.solve(batch, job.wide and not whole.binary)
        job.certificate[label, part] = certificate.double()
        test = job.test[part].nonzero()
        job.scores[label, :, test[:, 1]] = held[test[:, 0], :, test[:, 1]].T
        weight = operator.weight.expand(len(train), 1, n)
        job.keep_probes(label, part, final, held, weight, x)


def _each_fold(job: _Job) -> None:
    """All label vectors of a fold on that fold's own factor."""
    x, options, codes = job.x, job.options, job.codes
    labels = len(codes)
    scaled = options.standardize == "fold"
    pilot = codes if labels <= PILOTS else codes[: PILOTS // 2]
    target = one_hot(pilot, job.classes)
    weights = row_weights(pilot, job.classes, job.base[None], options)
    weights = weights.expand(len(pilot), -1, -1).clamp(min=1e-9 * float(weights.max()))
    whole = Loss(target, weights)
    rows = x / spread(x, job.base) if scaled else x
    _, scores, alpha, curvature = _start_from_nothing(job, rows, whole, 1e-3)
    fixed = curvature.clamp(min=1e-12).log().mean(0).exp()
    if labels > PILOTS and job.columns == 1:
        # New label vectors start from the pilots' mean pull towards a row's class.
        side = 2 * target - 1
        scores, alpha = (scores * side).mean(0), (alpha * side).mean(0)
    for fold in range(len(job.folds)):
        train, test = job.train[fold].nonzero()[:, 0], job.test[fold].nonzero()[:, 0]
        inside, outside = x[train], x[test]
        centre = inside.mean(0)
        size = spread(inside, job.base[train]) if scaled else torch.ones_like(centre)
        inside, outside = (inside - centre) / size, (outside - centre) / size
        factor = job.factor(inside, fixed[train], outside)
        operator = Operator(factor, factor.weight[None, None])
        for part in job.chunks(labels, len(train)):
            local = codes[part][:, train]
            goal = one_hot(local, job.classes)
            weights = row_weights(local, job.classes, job.base[train][None], options)
            if labels <= PILOTS:
                start = alpha[part][:, :, train]
                start = start + factor.weight * scores[part][:, :, train]
            elif job.columns == 1:
                start = alpha[:, train] + factor.weight * scores[:, train]
                start = start * (2 * goal - 1)
            else:
                start = torch.zeros_like(goal)
            batch = Batch(Loss(goal, weights), operator, start, operator(start))
            held, final, certificate = job.solve(batch, job.wide)
            job.certificate[part, fold] = certificate.double()
            reach = factor.elsewhere(final.double()).to(job.scores)
            job.scores[part, :, test] = reach
            job.keep_probes(part, fold, final, held, operator.weight, inside)
        if job.coef is not None and job.intercept is not None:
            job.coef[:, fold] /= size
            job.intercept[:, fold] -= job.coef[:, fold] @ centre
