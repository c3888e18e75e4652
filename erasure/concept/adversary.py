"""Logistic probes that erasers are trained against."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from evidence.arrays import RowsError


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted multinomial logistic regression.

    Attributes:
        coef: (d, class).
        intercept: (class,).
        loss: Mean cross-entropy plus penalty, in nats.
        accuracy: Accuracy on its training rows.
    """

    coef: Tensor
    intercept: Tensor
    loss: float
    accuracy: float

    def residuals(self, rows: Tensor, member: Tensor) -> Tensor:
        """(item, class) probability minus one-hot label: the gradient of the loss by the logits."""
        return (rows @ self.coef + self.intercept).softmax(1) - member


def fit_logistic_probe(
    rows: Tensor,
    one_hot: Tensor,
    penalty: float,
    start: LogisticProbe | None = None,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> LogisticProbe:
    """Multinomial logistic regression by L-BFGS.

    Minimizes mean cross-entropy + penalty / 2 * squared norm of the coefficients.

    Args:
        rows: (item, d) float64, of about unit scale.
        one_hot: (item, class) labels.
        penalty: Above 0, so that an optimum exists for separable rows.
        start: Initial probe; zero by default.
        steps: Maximum number of iterations; a few are enough after a warm start.
        tolerance: Largest gradient entry at the optimum.

    Raises:
        RowsError: The penalty is not above 0.
    """
    if not penalty > 0:
        raise RowsError("the penalty is out of range", expected="above 0", got=repr(penalty))
    items, d = rows.shape
    classes = one_hot.shape[1]

    def split(flat: np.ndarray) -> tuple[Tensor, Tensor]:
        table = torch.from_numpy(flat).to(rows).reshape(d + 1, classes)
        return table[:d], table[d]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coef, intercept = split(flat)
        logits = rows @ coef + intercept
        log_normalizer = logits.logsumexp(1)
        loss = (log_normalizer - (logits * one_hot).sum(1)).mean()
        loss = loss + penalty / 2 * coef.square().sum()
        error = ((logits - log_normalizer[:, None]).exp() - one_hot) / items
        gradient = torch.cat([rows.T @ error + penalty * coef, error.sum(0)[None]])
        return float(loss), gradient.cpu().numpy().ravel()

    initial = np.zeros((d + 1) * classes)
    if start is not None:
        stacked = torch.cat([start.coef, start.intercept[None]])
        initial = stacked.cpu().numpy().ravel()
    result = minimize(
        value,
        initial,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "gtol": tolerance, "ftol": 0.0, "maxfun": 4 * steps},
    )
    coef, intercept = split(np.asarray(result.x))
    correct = (rows @ coef + intercept).argmax(1) == one_hot.argmax(1)
    return LogisticProbe(coef, intercept, float(result.fun), float(correct.double().mean()))
