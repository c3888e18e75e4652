"""What one call of ``crossfit`` asks for, and where its answers go."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.errors import InputError
from probes.solvers.compiled.dispatch import supports_binary
from probes.solvers.newton.newton_cg import minimize
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import (
    factor_features,
    factor_gram,
    floor_weight,
    gram_matrix,
)

MIN_MIXED_SIZE = 20_000
"""Numbers in a block of problems below which float32 products save nothing."""


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


def one_hot(codes: Tensor, classes: int) -> Tensor:
    """(label, row) codes -> (label, class or 1, row) float64 targets."""
    if classes == 2:
        return codes[:, None, :].double()
    wanted = torch.arange(classes, device=codes.device)[:, None]
    return (codes[:, None, :] == wanted).double()


def row_weights(
    codes: Tensor, classes: int, sample_weight: Tensor, options: LogisticOptions
) -> Tensor:
    """Loss weights with C and class weights in.

    Args:
        codes: (problem or 1, row) class codes.
        classes: Number of classes.
        sample_weight: (problem or 1, row) sample weights, 0 where a row does not train.
        options: Which class weights.

    Returns:
        (problem, 1, row) float64.
    """
    weight = sample_weight
    if options.balanced:
        factors = torch.zeros(
            max(len(codes), len(sample_weight)),
            classes,
            dtype=sample_weight.dtype,
            device=sample_weight.device,
        )
        for code in range(classes):
            factors[:, code] = (sample_weight * (codes == code)).sum(1)
        factors = sample_weight.sum(1, keepdim=True) / (
            classes * factors.clamp(min=1e-300)
        )
        weight = sample_weight * factors.gather(1, codes.expand(len(factors), -1))
    elif options.class_weight is not None:
        weight = sample_weight * sample_weight.new_tensor(options.class_weight)[codes]
    return (weight * options.C)[:, None, :]


def centered_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 rows less their mean, constant columns 0, and the mean."""
    rows = x.to(torch.float64)
    mean = rows.mean(0)
    # A converted copy is ours to change; the caller's rows are not.
    rows = rows - mean if rows is x else rows.sub_(mean)
    # What centring leaves of a constant column is rounding, not a feature. Few columns
    # begin and end alike, so that few have to be looked at whole.
    eps = 16 * torch.finfo(rows.dtype).eps
    first = x[0].to(torch.float64)
    alike = (first - x[-1]).abs() <= 4 * eps * first.abs()
    if bool(alike.any()):
        which = alike.nonzero()[:, 0]
        columns = x[:, which].to(torch.float64)
        low, high = columns.amin(0), columns.amax(0)
        noise = eps * torch.maximum(-low, high)
        flat = torch.maximum(mean[which] - low, high - mean[which]) <= noise
        rows[:, which[flat]] = 0.0
    return rows, mean


def column_std(x: Tensor, weight: Tensor) -> Tensor:
    """(d,) weighted standard deviation of each column, 1 where one is constant."""
    share = weight / weight.sum()
    away = x - share @ x
    deviation = (share @ away.square()).sqrt()
    # Squares of these leave what a number can be.
    odd = ~((deviation > 1e-150) & (deviation < 1e150))
    if bool(odd.any()):
        top = away[:, odd].abs().amax(0).clamp(min=1e-300)
        deviation[odd] = top * (share @ (away[:, odd] / top).square()).sqrt()
    tiny = 10 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return torch.where(deviation > tiny, deviation, torch.ones_like(deviation))


class FitJob:
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

    def class_weights(self, curvature: Tensor) -> Tensor:
        """Weights of a factor for each class, or one for all where memory is short.

        Args:
            curvature: (class, n) of the loss by each class's score.
        """
        n, d = self.x.shape
        bytes_each = 8 * (4 * n * n if self.wide else 3 * n * d)
        if bytes_each * len(curvature) <= self.options.memory // 2:
            return curvature
        return curvature.mean(0, keepdim=True)

    def factor(self, rows: Tensor, weight: Tensor, other_rows: Tensor | None = None):
        """The cheaper form of the factor, and the Gram matrix where it has one."""
        if not self.wide:
            return factor_features(rows, weight, other_rows)
        across = None if other_rows is None else other_rows @ rows.T
        gram = gram_matrix(rows)
        return factor_gram(gram, floor_weight(weight, gram.diagonal()), across)

    def solve(self, batch: Batch, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Minimise in the precision asked for; ``mixed`` where float32 pays.

        With several classes it does not where rows outnumber features: what of the
        residual the features cannot see does not shrink, and float32 rounds the rest
        against it, unseen by the certificate. Two classes are solved among the
        features then, where there is no such rest. Either way a float32 answer is a
        float64 one, rounded where it is stored: coefficients come from differences of
        large numbers.
        """
        if self.options.precision == torch.float32 and self.wide:
            dtype = torch.float32
            batch = Batch(
                batch.loss.to(dtype),
                batch.operator.to(dtype),
                batch.dual.to(dtype),
                batch.scores.to(dtype),
            )
        # Small blocks cost their calls, not their arithmetic, where they have calls.
        mixed |= batch.loss.binary and not self.wide
        large = batch.scores.numel() >= MIN_MIXED_SIZE or supports_binary(batch)
        mixed &= self.options.mixed and large
        inner = torch.float32 if mixed else None
        # With many rows elimination is near: it beats conjugate gradients that stall.
        steps = 60 if self.wide else 12
        held, dual, certificate = minimize(
            batch, iteration_dtype=inner, steps=steps, work=self.work
        )
        return held, dual, certificate

    def chunks(
        self,
        count: int,
        size: int,
        removed: int = 0,
        rescaled: bool = False,
        factors: int = 1,
    ) -> Iterator[slice]:
        """Slices of problems that keep the memory budget beside so many factors."""
        n, d = self.x.shape
        square = 4 * n * n * factors if self.wide else 3 * n * d * (factors - 1)
        fixed = 8 * (2 * self.x.numel() + square)
        each = 8 * self.columns * (24 * size + 3 * removed * (size + removed))
        if rescaled:  # the rows squared; ratios, variances, weights and their product
            fixed += 8 * self.x.numel()
            each += 8 * 4 * d
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

    @property
    def iteration_dtype(self) -> torch.dtype:
        """Type of inner products where float32 pays."""
        return torch.float32 if self.options.mixed else torch.float64

    def store_dual(self, label, fold, dual, scores, weight, rows) -> None:
        """Store coefficients from alpha = c - w E and the intercept that fits E."""
        if self.coef is not None:
            coef = (dual - weight * scores).double() @ rows
            self.store_coef(label, fold, coef, scores, weight, rows)

    def store_coef(self, label, fold, coef, scores, weight, rows=None) -> None:
        """Store coefficients on ``rows`` (the job's own) and the intercept."""
        if self.coef is None or self.intercept is None:
            return
        rows = self.x if rows is None else rows
        rest = scores.double() - coef @ rows.T
        used = (weight > 0).double().expand_as(rest)
        self.coef[label, fold] = coef
        self.intercept[label, fold] = (rest * used).sum(-1) / used.sum(-1)
