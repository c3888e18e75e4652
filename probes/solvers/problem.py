"""Inputs and outputs of one call of ``crossfit``."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.errors import InputError
from probes.solvers.compiled.dispatch import supports_binary
from probes.solvers.newton.newton_cg import minimize
from probes.solvers.objective.batch import Batch, Work
from probes.solvers.objective.factor import factor_features, factor_gram, floor_weight, gram_matrix

MIN_MIXED_SIZE = 20_000
"""Size of a batch below which float32 products save nothing."""


@dataclass(frozen=True)
class LogisticOptions:
    """The model to fit.

    Attributes:
        C: Inverse penalty as in scikit-learn: 0.5 ||W||^2 + C sum of losses.
        balanced: Weight classes by n / (classes x count), within the training rows.
        class_weight: (class,) fixed class weights instead.
        standardize: "fold" scales each column by its standard deviation over the training rows,
            "all" by that over all rows, None not at all.
        precision: Type of the answer; the certificate is 1e-8 for float64 and 1e-4 for float32.
        mixed: Whether float64 answers may use float32 inside iterations.
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
    """Weights of the loss: C, class weights and sample weights.

    Args:
        codes: (problem or 1, row) class codes.
        classes: Number of classes.
        sample_weight: (problem or 1, row), 0 for rows outside training.
        options: The model.

    Returns:
        (problem, 1, row) float64.
    """
    weight = sample_weight
    if options.balanced:
        class_weights = torch.zeros(
            max(len(codes), len(sample_weight)),
            classes,
            dtype=sample_weight.dtype,
            device=sample_weight.device,
        )
        for code in range(classes):
            class_weights[:, code] = (sample_weight * (codes == code)).sum(1)
        class_weights = sample_weight.sum(1, keepdim=True) / (
            classes * class_weights.clamp(min=1e-300)
        )
        weight = sample_weight * class_weights.gather(1, codes.expand(len(class_weights), -1))
    elif options.class_weight is not None:
        weight = sample_weight * sample_weight.new_tensor(options.class_weight)[codes]
    return (weight * options.C)[:, None, :]


def centered_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 rows minus their mean, with constant columns set to 0, and the mean."""
    rows = x.to(torch.float64)
    mean = rows.mean(0)
    # A converted copy may be changed in place, the caller's rows may not.
    rows = rows - mean if rows is x else rows.sub_(mean)
    # A centered constant column is rounding, not a feature. Few columns have equal first and
    # last values, so few are tested completely.
    eps = 16 * torch.finfo(rows.dtype).eps
    first_row = x[0].to(torch.float64)
    maybe_constant = (first_row - x[-1]).abs() <= 4 * eps * first_row.abs()
    if bool(maybe_constant.any()):
        columns_idx = maybe_constant.nonzero()[:, 0]
        columns = x[:, columns_idx].to(torch.float64)
        low, high = columns.amin(0), columns.amax(0)
        noise = eps * torch.maximum(-low, high)
        is_constant = torch.maximum(mean[columns_idx] - low, high - mean[columns_idx]) <= noise
        rows[:, columns_idx[is_constant]] = 0.0
    return rows, mean


def column_std(x: Tensor, weight: Tensor) -> Tensor:
    """(d,) weighted standard deviation of each column, 1 for constant columns."""
    normalized = weight / weight.sum()
    deviations = x - normalized @ x
    deviation = (normalized @ deviations.square()).sqrt()
    # Squares of extreme values over- or underflow: rescale these columns.
    extreme = ~((deviation > 1e-150) & (deviation < 1e150))
    if bool(extreme.any()):
        top = deviations[:, extreme].abs().amax(0).clamp(min=1e-300)
        deviation[extreme] = top * (normalized @ (deviations[:, extreme] / top).square()).sqrt()
    noise = 10 * torch.finfo(x.dtype).eps * x.abs().amax(0)
    return torch.where(deviation > noise, deviation, torch.ones_like(deviation))


class FitJob:
    """Inputs of one call of ``crossfit``, and the arrays that receive its answers.

    ``wide`` says that rows are fewer than about twice the features, so that solvers work with the
    Gram matrix instead of the features.
    """

    def __init__(self, x, codes, classes, folds, options, base, coefficients):
        self.x, self.codes, self.classes, self.folds = x, codes, classes, folds
        self.options, self.base, self.work = options, base, Work()
        self.columns = 1 if classes == 2 else classes
        self.wide = len(x) <= 2 * (x.shape[1] + 1)
        labels, n = codes.shape
        dtype, device = options.precision, x.device
        shape = (labels, len(folds), self.columns)
        self.scores = torch.full((labels, self.columns, n), torch.nan, dtype=dtype, device=device)
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
        bytes_per_factor = 8 * (4 * n * n if self.wide else 3 * n * d)
        if bytes_per_factor * len(curvature) <= self.options.memory // 2:
            return curvature
        return curvature.mean(0, keepdim=True)

    def factor(self, rows: Tensor, weight: Tensor, other_rows: Tensor | None = None):
        """The cheaper form of the factor; ``other_rows`` are rows to score."""
        if not self.wide:
            return factor_features(rows, weight, other_rows)
        other_gram = None if other_rows is None else other_rows @ rows.T
        gram = gram_matrix(rows)
        return factor_gram(gram, floor_weight(weight, gram.diagonal()), other_gram)

    def solve(self, batch: Batch, mixed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Minimize in the requested precision; ``mixed`` where float32 inside iterations pays.

        With several classes it does not where rows outnumber features: the part of the residual
        that the features cannot represent does not shrink, and float32 rounds the rest against it
        without any trace in the certificate. Two classes are then solved in parameter space,
        without such a part. A float32 answer is a float64 one, rounded when stored, because
        coefficients are differences of large numbers.
        """
        if self.options.precision == torch.float32 and self.wide:
            dtype = torch.float32
            batch = Batch(
                batch.loss.to(dtype),
                batch.operator.to(dtype),
                batch.dual.to(dtype),
                batch.scores.to(dtype),
            )
        # The cost of small torch batches is their calls, not their arithmetic.
        mixed |= batch.loss.binary and not self.wide
        is_large = batch.scores.numel() >= MIN_MIXED_SIZE or supports_binary(batch)
        mixed &= self.options.mixed and is_large
        iteration_dtype = torch.float32 if mixed else None
        # With many rows a direct solve is cheap and beats stalling conjugate gradients.
        steps = 60 if self.wide else 12
        scores, dual, certificate = minimize(
            batch, iteration_dtype=iteration_dtype, steps=steps, work=self.work
        )
        return scores, dual, certificate

    def chunks(
        self,
        n_problems: int,
        n_rows: int,
        n_removed: int = 0,
        rescaled: bool = False,
        n_factors: int = 1,
    ) -> Iterator[slice]:
        """Slices of problems that fit the memory budget beside the factors."""
        n, d = self.x.shape
        square = 4 * n * n * n_factors if self.wide else 3 * n * d * (n_factors - 1)
        fixed = 8 * (2 * self.x.numel() + square)
        per_problem = 8 * self.columns * (24 * n_rows + 3 * n_removed * (n_rows + n_removed))
        if rescaled:  # squared rows; ratios, variances, weights and their product
            fixed += 8 * self.x.numel()
            per_problem += 8 * 4 * d
        per_chunk = int((self.options.memory - fixed) // max(per_problem, 1))
        if per_chunk < 1:
            raise InputError(
                "the memory budget is too small for one fit",
                expected=f"at least {fixed + per_problem} bytes",
                got=f"{self.options.memory}",
                fix="Raise memory=",
            )
        for start in range(0, n_problems, per_chunk):
            yield slice(start, min(start + per_chunk, n_problems))

    @property
    def iteration_dtype(self) -> torch.dtype:
        """Type of products inside iterations where float32 pays."""
        return torch.float32 if self.options.mixed else torch.float64

    def store_dual(self, label, fold, dual, scores, weight, rows) -> None:
        """Store coefficients from alpha = c - w E, and the intercept that matches E."""
        if self.coef is not None:
            coef = (dual - weight * scores).double() @ rows
            self.store_coef(label, fold, coef, scores, weight, rows)

    def store_coef(self, label, fold, coef, scores, weight, rows=None) -> None:
        """Store coefficients on ``rows`` (the job's own by default), and the intercept."""
        if self.coef is None or self.intercept is None:
            return
        rows = self.x if rows is None else rows
        remainder = scores.double() - coef @ rows.T
        is_used = (weight > 0).double().expand_as(remainder)
        self.coef[label, fold] = coef
        self.intercept[label, fold] = (remainder * is_used).sum(-1) / is_used.sum(-1)
