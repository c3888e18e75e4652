"""The same numbers on CUDA as on the CPU, and nothing asked of CUDA it would refuse."""

import numpy as np
import pytest
import torch

from probes.cka import cka_matrix, debiased_cka
from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe
from probes.splits.folds import k_fold, leave_one_group_out
from probes.sweeps.sweep import sweep
from tests.helpers.fake_cuda import PretendCuda, there_and_pretended


@pytest.fixture(params=there_and_pretended(PretendCuda))
def there(request):
    return request.param


def rows(n, d, classes):
    rng = np.random.default_rng(n + d + classes)
    codes = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) * rng.uniform(0.2, 3, d) + 4
    x[:, 0] += codes
    return torch.from_numpy(x), torch.from_numpy(codes)[None]


SHAPES = [(30, 50), (60, 6)]
LOGISTIC = [
    pytest.param(precision, scaling, labels, id=f"{precision}-{scaling}-{labels}")
    for precision in ("float64", "float32")
    for scaling in (None, "fold", "all")
    for labels in (1, 9)
]


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("precision", "scaling", "labels"), LOGISTIC)
def test_logistic_folds(there, n, d, classes, precision, scaling, labels):
    x, codes = rows(n, d, classes)
    many = torch.cat([codes.roll(shift, 1) for shift in range(labels)])
    folds = leave_one_group_out(np.arange(n) // 3, n)
    probe = LogisticProbe(1.0, "balanced", scaling, precision)
    here = probe.held_out(x, many, classes, folds, coefficients=True)
    with there():
        found = probe.held_out(x.to("cuda"), many.to("cuda"), classes, folds, coefficients=True)
        assert found.coef is not None and here.coef is not None
        assert found.scores.device.type == found.coef.device.type == "cuda"
        scores, coef = found.scores.cpu(), found.coef.cpu()
    close = 1e-7 if precision == "float64" else 2e-4
    scale = float(here.scores.abs().max())
    torch.testing.assert_close(scores, here.scores, rtol=close, atol=close * scale)
    scale = float(here.coef.abs().max())
    torch.testing.assert_close(coef, here.coef, rtol=close, atol=close * scale)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scaling", [None, "fold", "all"])
@pytest.mark.parametrize("kind", [RidgeProbe, LDAProbe, MeanDifferenceProbe])
@pytest.mark.parametrize("folds", ["groups", "rows", "five"])
def test_closed_forms(there, n, d, classes, scaling, kind, folds):
    x, codes = rows(n, d, classes)
    folds = {
        "groups": leave_one_group_out(np.arange(n) // 3, n),
        "rows": leave_one_group_out(None, n),
        "five": k_fold(None, codes[0].numpy(), 5),
    }[folds]
    probe = kind(standardize=scaling)
    here = probe.held_out(x, codes, classes, folds).scores
    with there():
        found = probe.held_out(x.to("cuda"), codes.to("cuda"), classes, folds).scores
        found = found.cpu()
    torch.testing.assert_close(found, here, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", [LogisticProbe, RidgeProbe, LDAProbe, MeanDifferenceProbe])
def test_single_fits(there, n, d, classes, kind):
    x, codes = rows(n, d, classes)
    here = kind().fit(x, codes[0])
    with there():
        found = kind().fit(x.to("cuda"), codes[0].to("cuda"))
        scores = found.decision_function(x.to("cuda")).cpu()
        assert (found.predict(x.to("cuda")) == here.predict(x)).all()
    np.testing.assert_allclose(found.coef_, here.coef_, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(scores, here.decision_function(x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "options",
    [
        {"permutations": 5},
        {"penalties": [0.1, 1.0]},
        {"rebalance": True, "permutations": 3},
        {"cv": 4, "control": np.arange(30) % 7, "coefficients": True},
    ],
    ids=["permutations", "penalties", "rebalanced", "control"],
)
def test_sweeps(there, options):
    x, codes = rows(30, 50, 2)
    sites = torch.stack([x, x.flip(1), torch.ones_like(x)])
    groups = np.arange(30) // 2
    labels = codes[0].numpy()
    here = sweep(sites, labels, groups, draws=20, **options)
    with there():
        found = sweep(sites, labels, groups, draws=20, device="cuda", **options)
    np.testing.assert_allclose(found.scores, here.scores, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.null_auc, here.null_auc, atol=1e-12)
    assert found.p_value == here.p_value or np.isnan(here.p_value)


def test_cka(there):
    x, _ = rows(30, 50, 2)
    sites = torch.stack([x, x.flip(1).square(), x.roll(1, 0)])
    here = cka_matrix(sites, precision=torch.float64)
    with there():
        found = cka_matrix(sites, precision=torch.float64, device="cuda")
        single = debiased_cka(sites[0].to("cuda"), sites[1].to("cuda"))
    np.testing.assert_allclose(found, here, rtol=1e-10, atol=1e-12)
    assert abs(single - here[0, 1]) < 1e-10


def test_the_pretended_device_refuses_what_cuda_would():
    with PretendCuda():
        one, other = torch.ones(3).to("cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="both devices"):
            _ = one + other
        with pytest.raises(TypeError, match="NumPy"):
            one.numpy()
        with pytest.raises(RuntimeError, match="both devices"):
            _ = (one * 2)[:, None] * torch.zeros(3, device=other.device)
        assert one.new_zeros(2).device.type == "cuda"
        assert (one.cpu() + other).device.type == "cpu"
