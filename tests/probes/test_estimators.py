"""Every probe keeps scikit-learn's contract."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe


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
