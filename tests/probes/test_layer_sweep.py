"""Sweeps: skill, controls, nulls and what they refuse."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold

from evidence.errors import InputError
from probes.estimators.classifier_battery import refit_battery
from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe
from probes.sweeps.description_length import online_code
from probes.sweeps.site_source import open_source
from probes.sweeps.sweep import sweep


@pytest.fixture
def task(rng):
    """Three sites: noise, a signal, all rows equal."""
    groups = np.repeat(np.arange(24), 2)
    labels = np.where(groups % 2 == 0, "no", "yes")
    x = rng.standard_normal((3, 48, 10))
    x[1, :, 0] += 3 * (labels == "yes")
    x[2] = x[2, 0]
    return x, labels, groups


def test_skill_is_scikit_learns_on_the_same_scores(task):
    x, labels, groups = task
    found = sweep(x, labels, groups, coefficients=True)
    truth = labels == "yes"
    scores = found.scores[1, 0]
    assert found.auc[1] == pytest.approx(roc_auc_score(truth, scores))
    assert found.accuracy[1] == pytest.approx(((scores > 0) == truth).mean())
    chance = 1 / (1 + np.exp(-scores))
    assert found.log_loss[1] == pytest.approx(log_loss(truth, chance))
    assert found.auc_interval[1, 0] <= found.auc[1] <= found.auc_interval[1, 1]
    row = 7
    fold = groups[row]
    by_hand = x[1, row] @ found.coef[1, fold, 0] + found.intercept[1, fold, 0]
    assert by_hand == pytest.approx(scores[row], rel=1e-6)
    assert found.certificate.max() <= 1e-8


def test_constant_sites_are_named_not_scored(task):
    found = sweep(*task)
    assert found.constant.tolist() == [False, False, True]
    assert found.auc[2] == 0.5 and "1 constant" in repr(found)


def test_null_takes_the_maximum_over_sites(task):
    found = sweep(*task, permutations=60, probe=MeanDifferenceProbe())
    assert found.null_auc.shape == (60, 3)
    top = found.null_auc.max(1)
    expected = (1 + (top >= found.auc[0] - 1e-12).sum()) / 61
    assert found.p_site[0] == pytest.approx(expected)
    assert found.p_value == found.p_site.min() == pytest.approx(1 / 61)
    # Groups of one label exchange labels whole.
    assert abs(found.null_auc[:, :2].mean() - 0.5) < 0.1


def test_control_task_has_its_own_skill(task):
    x, labels, groups = task
    kinds = groups // 4
    x = x.copy()
    # A site that only names the kind: any task on kinds is learnable from it.
    x[0] = np.eye(10)[kinds] * 4
    found = sweep(x, labels, groups, control=kinds, cv=6)
    assert found.control_auc[0] > 0.9
    assert found.selectivity[0] < 0 < found.selectivity[1]


def test_penalty_is_chosen_inside_each_fold(task):
    x, labels, groups = task
    grid = [1e-4, 1.0]
    found = sweep(x, labels, groups, cv=4, penalties=grid)
    assert set(np.unique(found.penalty[:2])) <= set(grid)
    assert (found.penalty[1] == 1.0).any()
    for probe in (RidgeProbe(), LDAProbe()):
        nested = sweep(x, labels, groups, cv=4, penalties=[0.01, 0.5], probe=probe)
        assert np.isfinite(nested.scores).all()
    with pytest.raises(InputError, match="no penalty"):
        sweep(x, labels, groups, penalties=grid, probe=MeanDifferenceProbe())


def test_nested_scores_are_those_of_the_penalty_chosen(task):
    x, labels, groups = task
    nested = sweep(x, labels, groups, cv=4, penalties=[0.01, 1.0])
    plain = {C: sweep(x, labels, groups, cv=4, probe=LogisticProbe(C)) for C in (0.01, 1.0)}
    from probes.splits.folds import k_fold

    folds = k_fold(groups, labels, 4)
    for fold in range(4):
        test = folds.test[fold]
        expected = plain[nested.penalty[1, fold]].scores[1, 0, test]
        np.testing.assert_allclose(nested.scores[1, 0, test], expected, rtol=1e-6)


def test_several_targets_and_classes(task):
    x, labels, groups = task
    found = sweep(x, groups=groups, targets={"a": labels, "b": groups % 3}, cv=4)
    assert list(found) == ["a", "b"]
    assert found["b"].scores.shape == (3, 3, 48)
    frame = found["b"].to_frame()
    assert len(frame) == 3 and type(frame["auc"].tolist()[0]) is float
    assert "LayerSweep('b', 3 sites, 4-fold by group" in repr(found["b"])
    assert len(found["a"].plot().data) >= 2


@dataclass
class Store:
    table: np.ndarray

    @property
    def sites(self):
        return ("resid.0", "resid.1", "resid.2")

    def site(self, name):
        return self.table[int(name[-1])].astype(np.float32)


def test_a_store_is_read_site_by_site(task):
    x, labels, groups = task
    found = sweep(Store(x), labels, groups)
    assert found.sites[1] == "resid.1"
    np.testing.assert_allclose(found.auc, sweep(x, labels, groups).auc, atol=0.01)


def test_input_of_every_kind(task):
    x, labels, groups = task
    frozen = np.asfortranarray(x)
    frozen.setflags(write=False)
    expected = sweep(x, labels, groups).scores
    np.testing.assert_allclose(sweep(frozen, labels, groups).scores, expected)
    tensor = torch.from_numpy(x.copy())
    np.testing.assert_allclose(sweep(tensor, labels, groups).scores, expected)
    half = sweep(x.astype(np.float16), labels, groups).scores
    np.testing.assert_allclose(half[:2], expected[:2], atol=0.05)
    splits = GroupKFold(4).split(x[0], labels, groups)
    assert np.isfinite(sweep(x, labels, groups, cv=list(splits)).scores).all()
    twice = np.concatenate([x, x], axis=2)
    assert np.isfinite(sweep(twice, labels, groups).scores).all()


def test_refusals_say_what_to_do(task):
    x, labels, groups = task
    broken = x.copy()
    broken[1, 5, 2] = np.nan
    with pytest.raises(InputError, match="NaN or infinite values in 1 row of 48"):
        sweep(broken, labels, groups)
    # Finite values are taken though their sum is not.
    huge = np.full((1, 4, 3), 1e308)
    assert (open_source(huge).read("site.0", None).numpy() == huge[0]).all()
    with pytest.raises(InputError, match="only one class"):
        sweep(x, np.zeros(48), groups)
    with pytest.raises(InputError, match="no training row of class '1'"):
        sweep(x, (groups == 0).astype(int), groups)
    with pytest.raises(InputError, match="at least one of each"):
        sweep(x[:, :0], labels[:0])
    with pytest.raises(InputError, match="positive and finite"):
        sweep(x, labels, groups, probe=LogisticProbe(np.inf))
    with pytest.raises(InputError, match="memory budget is too small"):
        sweep(x, labels, groups, memory=1000)
    with pytest.raises(InputError, match="trains on and scores rows of the same group"):
        sweep(x, labels, groups, cv=[(np.arange(1, 48), np.arange(1))])


def test_two_rows_a_class_and_one_column():
    x = np.array([[[0.0], [1.0], [0.1], [0.9]]])
    # A weak penalty: a strong one would score by the counts of the classes left.
    found = sweep(x, [0, 1, 0, 1], probe=LogisticProbe(1e3))
    assert found.auc[0] == 1.0


def test_same_seed_same_numbers(task):
    first = sweep(*task, permutations=20, cv=4, control=task[2])
    second = sweep(*task, permutations=20, cv=4, control=task[2])
    assert first.to_frame().equals(second.to_frame())
    np.testing.assert_array_equal(first.null_auc, second.null_auc)


def test_rebalancing_lifts_the_null_bias(rng):
    # A strong penalty makes leave-one-out scores follow the class counts.
    x, labels = rng.standard_normal((1, 40, 5)), np.arange(40) % 2
    probe = RidgeProbe(1e5)
    plain = sweep(x, labels, probe=probe, permutations=200)
    even = sweep(x, labels, probe=probe, permutations=200, rebalance=True)
    assert plain.null_auc.mean() < 0.35
    assert abs(even.null_auc.mean() - 0.5) < 0.05


@pytest.mark.slow
def test_p_values_are_uniform_on_noise():
    p = []
    for run in range(200):
        rng = np.random.default_rng(run)
        x = rng.standard_normal((3, 40, 8))
        labels = rng.permutation(np.arange(40) % 2)
        found = sweep(x, labels, cv=5, permutations=99, draws=10, seed=run)
        p.append(found.p_value - rng.uniform() / 100)
    assert kstest(p, "uniform").pvalue > 0.01


def test_online_code_prices_signal_and_noise(rng):
    labels = np.arange(200) % 2
    x = rng.standard_normal((200, 5))
    noise = online_code(x, labels)
    x[:, 0] += 4 * labels
    signal = online_code(x, labels)
    assert signal.bits < 0.5 * signal.uniform_bits == 100
    assert noise.bits > 0.95 * noise.uniform_bits
    assert signal.bits == pytest.approx(sum(signal.blocks) + (200 - 190), abs=0.01)
    with pytest.raises(InputError, match="no probabilities"):
        online_code(x, labels, probe=RidgeProbe())


def test_battery_reads_what_a_line_cannot(rng):
    x = rng.standard_normal((160, 2))
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    found = refit_battery({"last": x, "mean": x[:, ::-1]}, labels, draws=50)
    frame = found.to_frame().set_index(["view", "classifier"])
    assert len(frame) == 20
    assert frame.loc[("last", "svm rbf"), "auc"] > 0.9
    assert frame.loc[("last", "logistic C=1"), "auc"] < 0.75
