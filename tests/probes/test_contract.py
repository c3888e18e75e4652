"""Every probe keeps scikit-learn's contract."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes.logistic import LogisticProbe


@parametrize_with_checks([LogisticProbe(), LogisticProbe(standardize="fold")])
@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_scikit_learn_contract(estimator, check):
    check(estimator)
