"""Every probe keeps scikit-learn's contract."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.directions import MeanDifferenceProbe
from probes.discriminant import LDAProbe
from probes.logistic import LogisticProbe
from probes.ridge import RidgeProbe


@parametrize_with_checks(
    [
        LogisticProbe(),
        LogisticProbe(standardize="fold", class_weight="balanced"),
        RidgeProbe(),
        MeanDifferenceProbe(),
        LDAProbe(),
    ]
)
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_scikit_learn_contract(estimator, check):
    check(estimator)
