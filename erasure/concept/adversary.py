"""Logistic readers that erasers are trained against."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from erasure.inputs import RowsError


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted multinomial logistic regression.

    Attributes:
        coef: (d, class).
        intercept: (class,).
        loss: Mean cross-entropy and penalty, in nats.
        accuracy: Share of its own rows it gets right.
    """

    coef: Tensor
    intercept: Tensor
    loss: float
    accuracy: float

    def residuals(self, rows: Tensor, member: Tensor) -> Tensor:
        """(item, class) probability less truth: the loss's gradient by the logits."""
        return (rows @ self.coef + self.intercept).softmax(1) - member


def fit_logistic_probe(
    rows: Tensor,
    one_hot: Tensor,
    penalty: float,
    start: LogisticProbe | None = None,
    steps: int = 1000,
    tolerance: float = 1e-6,
) -> LogisticProbe:
    """Fit a reader by L-BFGS.

    Minimises mean cross-entropy + penalty / 2 * squared norm of the coefficients.

    Args:
        rows: (item, d) float64, of about unit scale.
        one_hot: (item, class) one-hot.
        penalty: Above 0, so that there is an optimum however separable the rows.
        start: Where to start; by default at zero.
        steps: Iterations at most. Fewer than it needs are meant for warm starts.
        tolerance: Largest gradient entry at the optimum.

    Raises:
        RowsError: penalty is not above 0.
    """
    if not penalty > 0:
        raise RowsError("unknown penalty", expected="above 0", got=repr(penalty))
    items, d = rows.shape
    classes = one_hot.shape[1]

    def split(flat: np.ndarray) -> tuple[Tensor, Tensor]:
        table = torch.from_numpy(flat).to(rows).reshape(d + 1, classes)
        return table[:d], table[d]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        coef, intercept = split(flat)
        logits = rows @ coef + intercept
        spare = logits.logsumexp(1)
        loss = (spare - (logits * one_hot).sum(1)).mean()
        loss = loss + penalty / 2 * coef.square().sum()
        error = ((logits - spare[:, None]).exp() - one_hot) / items
        slope = torch.cat([rows.T @ error + penalty * coef, error.sum(0)[None]])
        return float(loss), slope.cpu().numpy().ravel()

    first = np.zeros((d + 1) * classes)
    if start is not None:
        whole = torch.cat([start.coef, start.intercept[None]])
        first = whole.cpu().numpy().ravel()
    found = minimize(
        value,
        first,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "gtol": tolerance, "ftol": 0.0, "maxfun": 4 * steps},
    )
    coef, intercept = split(np.asarray(found.x))
    right = (rows @ coef + intercept).argmax(1) == one_hot.argmax(1)
    return LogisticProbe(
        coef, intercept, float(found.fun), float(right.double().mean())
    )
