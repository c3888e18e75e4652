"""A linear map from the original's states into those of a model with another basis.

A model trained from other initial weights computes with other coordinates and cannot use the
original's states as they are. The map is fitted on questions about retain entities, at every
position. It carries what both models make of a token; it knows no forgotten entity.

Source: model stitching (Lenc and Vedaldi 2015, arXiv 1411.5908; Bansal et al. 2021,
arXiv 2106.07682).
"""

import numpy as np
from sklearn.linear_model import Ridge

from attribution.patching.cross_model import DonorStates

PENALTY = 1e-3
"""Ridge penalty, relative to the mean variance of a feature."""


def mapped_states(
    states: DonorStates, fitted_from: DonorStates, fitted_to: DonorStates
) -> DonorStates:
    """The states in the other model's coordinates, site by site.

    Args:
        states: The original's, to be mapped.
        fitted_from: The original's at the questions of the fit.
        fitted_to: The other model's at the same questions and positions.
    """
    values = {}
    for site, value in states.values.items():
        source = fitted_from.values[site][fitted_from.mask]
        target = fitted_to.values[site][fitted_to.mask]
        # Positions of common words are many and alike; each distinct state counts once.
        _, first = np.unique(source.round(5), axis=0, return_index=True)
        source, target = source[first], target[first]
        penalty = PENALTY * float(source.var(0).mean()) * len(source)
        ridge = Ridge(alpha=max(penalty, 1e-12)).fit(source, target)
        moved = ridge.predict(value.reshape(-1, value.shape[-1])).reshape(value.shape)
        values[site] = np.where(states.mask[..., None], moved, 0).astype(np.float32)
    return DonorStates(values, states.mask)
