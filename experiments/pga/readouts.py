"""Membership readouts that erasers are aligned against: exact logistic regression."""

from collections.abc import Callable

import torch
from torch import Tensor

from evidence.errors import InputError
from probes.estimators.logistic import LogisticProbe


def logistic_readouts(C: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """A fitter of unit directions, one per depth, for ``erasure.unlearning.probe_alignment``.

    Columns are standardized for the fit, and the direction is mapped back to raw activation
    units. At a depth where all rows are equal it is zero.

    Args:
        C: Inverse regularization strength.
    """

    def fit(states: Tensor, labels: Tensor) -> Tensor:
        """(depth, row, d) and (row,) to (depth, d).

        Warns:
            UncertifiedWarning: a fit has no certificate of optimality; its direction is used.
        """
        if len(labels.unique()) != 2:
            raise InputError("a readout needs rows of two classes", got="one class")
        directions = []
        for rows in states.detach().double().cpu():
            if float((rows - rows.mean(0)).abs().max()) == 0:
                directions.append(torch.zeros_like(rows[0]))
                continue
            probe = LogisticProbe(C, standardize="fold")
            weights = torch.from_numpy(probe.fit(rows, labels.cpu().numpy()).coef_[0])
            directions.append(weights / weights.norm().clamp(min=1e-300))
        return torch.stack(directions)

    return fit
