"""scikit-learn's splitters and classifiers in our sweeps, and our estimators in its tools."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    LeaveOneOut,
    RepeatedKFold,
    ShuffleSplit,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import exhume
from evidence.errors import InputError
from evidence.progress import SILENT
from probes.estimators.lda import LDAProbe
from probes.estimators.logistic import LogisticProbe
from probes.estimators.nearest_mean import MeanDifferenceProbe
from probes.estimators.ridge import RidgeProbe
from probes.solvers import crossfit as crossfit_module
from probes.solvers.crossfit import crossfit
from probes.solvers.problem import LogisticOptions
from probes.solvers.uncertified import UncertifiedWarning
from probes.splits.folds import leave_one_group_out
from probes.sweeps import pace
from probes.sweeps.description_length import online_code
from probes.sweeps.sweep import sweep

ROWS = 40
PROBES = (LogisticProbe(), RidgeProbe(), LDAProbe(), MeanDifferenceProbe())


@pytest.fixture
def task(rng):
    """Two sites, the second with a signal; labels and groups of four."""
    labels, groups = np.arange(ROWS) % 2, np.arange(ROWS) // 4
    x = rng.standard_normal((2, ROWS, 6))
    x[1, :, 0] += 4 * labels
    return x, labels, groups


@pytest.mark.parametrize("splitter", [KFold(4), StratifiedKFold(4), LeaveOneOut()])
def test_splitters_split_as_in_scikit_learn(task, splitter):
    x, labels, _ = task
    found = sweep(x, labels, cv=splitter)
    given = sweep(x, labels, cv=[*splitter.split(x[0], labels)])
    np.testing.assert_array_equal(found.scores, given.scores)
    assert type(splitter).__name__ in found.scheme


@pytest.mark.parametrize("splitter", [GroupKFold(5), LeaveOneGroupOut()])
def test_splitters_of_groups_take_the_groups(task, splitter):
    x, labels, groups = task
    found = sweep(x, labels, groups, cv=splitter)
    given = sweep(x, labels, groups, cv=[*splitter.split(x[0], labels, groups)])
    np.testing.assert_array_equal(found.scores, given.scores)
    with pytest.raises(InputError, match=r"cannot split these rows.*Give groups="):
        sweep(x, labels, cv=splitter)


REFUSED = [
    (KFold(4), "trains on and scores rows of the same group"),
    (RepeatedKFold(), "RepeatedKFold scores some rows in several folds"),
    (
        ShuffleSplit(9, random_state=0, test_size=0.5),
        "scores some rows in several folds|same group",
    ),
    (KFold, r"unknown cv.*Write KFold\(\)"),
    (3.5, "unknown cv"),
    (None, "unknown cv"),
    (True, "unknown cv"),
    ("loo", "unknown cv"),
    ([1, 2], "no pairs of training rows and test rows"),
    ([], "no splits"),
]


@pytest.mark.parametrize(("cv", "message"), REFUSED)
def test_what_cannot_split_is_refused_in_one_sentence(task, cv, message):
    with pytest.raises(InputError, match=message):
        sweep(*task, cv=cv)


def test_a_classifier_gives_the_scores_of_its_own_fits(task):
    x, labels, _ = task
    reader = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    found = sweep(
        x, labels, cv=KFold(4), probe=reader, permutations=2, control=np.arange(ROWS) // 2
    )
    for train, test in KFold(4).split(x[1]):
        fitted: Any = clone(reader)
        fitted.fit(x[1, train], labels[train])
        expected = fitted.decision_function(x[1, test])
        np.testing.assert_allclose(found.scores[1, 0, test], expected, atol=1e-9)
    ours = sweep(x, labels, cv=KFold(4), probe=LogisticProbe(0.3, standardize="fold"))
    np.testing.assert_allclose(found.scores, ours.scores, atol=2e-2)
    np.testing.assert_allclose(found.log_loss, ours.log_loss, atol=1e-2)
    assert found.null_auc.shape == (2, 2) and np.isfinite(found.control_auc).all()


def test_several_classes_and_classifiers_without_probabilities(task):
    x = task[0]
    labels = np.arange(ROWS) % 3
    near = sweep(x, labels, cv=KFold(4), probe=KNeighborsClassifier())
    assert near.scores.shape == (2, 3, ROWS) and np.isfinite(near.log_loss).all()
    ridge = sweep(x, labels, cv=KFold(4), probe=RidgeClassifier())
    assert np.isnan(ridge.log_loss).all() and np.isfinite(ridge.auc).all()
    chosen = sweep(x, task[1], cv=KFold(4), probe=LogisticRegression(), penalties=[0.01, 1.0])
    assert set(chosen.penalty.ravel()) <= {0.01, 1.0}
    assert np.isfinite(online_code(x[1], task[1], probe=LogisticRegression()).bits)


def test_what_is_no_probe_is_refused_in_one_sentence(task):
    x, labels, _ = task
    for wrong in (Ridge(), StandardScaler(), "logistic", 3):
        with pytest.raises(InputError, match="the probe is no classifier"):
            sweep(x, labels, probe=wrong)  # pyright: ignore
    with pytest.raises(InputError, match=r"a class, not a probe.*Write LogisticProbe\(\)"):
        sweep(x, labels, probe=LogisticProbe)  # pyright: ignore
    with pytest.raises(InputError, match="LogisticRegression does not keep coefficients"):
        sweep(x, labels, probe=LogisticRegression(), coefficients=True, cv=4)
    with pytest.raises(InputError, match="Pipeline has no penalty"):
        sweep(x, labels, probe=make_pipeline(LinearSVC()), penalties=[1.0], cv=4)
    with pytest.raises(InputError, match="no probabilities"):
        online_code(x[1], labels, probe=LinearSVC())


def test_a_classifier_that_does_not_converge_is_named_and_kept(task):
    x, labels, _ = task
    early = LogisticRegression(max_iter=1)
    with pytest.warns(UncertifiedWarning, match="site.0, labels, fold 0"):
        found = sweep(x, labels, cv=4, probe=early, permutations=3)
    assert len(found.uncertified) == 2 * 4 * 4 and np.isfinite(found.scores).all()
    assert {fit.name for fit in found.uncertified} >= {"labels", "permutation 2"}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: type(probe).__name__)
def test_our_probes_in_scikit_learns_tools(task, probe):
    x, labels, groups = task
    copied: Any = clone(probe)
    assert copied.get_params() == probe.get_params()
    reader = make_pipeline(StandardScaler(), exhume.Leace(), probe)
    for given in (labels, labels.astype(float), np.where(labels == 1, "yes", "no")):
        scores = cross_val_score(probe, x[1], given, cv=GroupKFold(5), groups=groups)
        assert scores.mean() > 0.7
        erased = cross_val_score(reader, x[1], given, cv=GroupKFold(5), groups=groups)
        assert erased.mean() < scores.mean()
    name = next(iter(probe.get_params()))
    search = GridSearchCV(probe, {name: [probe.get_params()[name]]}, cv=3).fit(x[1], labels)
    assert search.best_score_ > 0.7


def test_many_label_vectors_share_one_factor(rng, monkeypatch):
    """A permutation costs one factor and a correction a fold, not a factor a fold."""
    rows = torch.from_numpy(rng.standard_normal((66, 80)))
    labels = torch.from_numpy(np.stack([rng.permutation(np.arange(66) % 2) for _ in range(12)]))
    folds = leave_one_group_out(None, 66)
    with monkeypatch.context() as patch:
        patch.setattr(crossfit_module, "_many_small_folds", lambda job: False)
        each_fold = crossfit(rows, labels, 2, folds, LogisticOptions())
    monkeypatch.setattr(crossfit_module, "fit_each_fold", pytest.fail)
    shared = crossfit(rows, labels, 2, folds, LogisticOptions())
    assert not shared.uncertified and not each_fold.uncertified
    torch.testing.assert_close(shared.scores, each_fold.scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("probe", [LogisticProbe(), LogisticRegression()])
@pytest.mark.parametrize("permutations", [0, 3])
def test_a_long_sweep_says_so_beforehand(task, probe, permutations, monkeypatch):
    x, labels, _ = task
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sweep(x, labels, cv=4, probe=probe, permutations=permutations)
    monkeypatch.setattr(pace, "MAX_UNSAID_SECONDS", 0.0)
    with pytest.warns(pace.LongRunWarning, match="takes about .* or less") as warned:
        sweep(x, labels, cv=4, probe=probe, permutations=permutations)
    assert len(warned) == 1 and warned[0].filename == __file__


def test_an_estimate_does_not_count_what_happens_once():
    noted = []

    class Noted(type(SILENT)):
        def note(self, text: str) -> None:
            noted.append(text)

    # The first label vector took an hour, the next ones a few microseconds.
    pace.Pace(1000, Noted()).estimate(3600.0, 1, lambda count: count)
    assert noted == []
    with pytest.warns(pace.LongRunWarning, match=r"takes about 17 minutes or less: 1000 label"):
        pace.Pace(1000, Noted()).say(1.0, 1000)
    assert len(noted) == 1
    assert pace.duration(80) == "80 s" and pace.duration(7200) == "2.0 hours"


def test_progress_argument(task, capsys):
    x, labels, _ = task
    for progress in (True, False, SILENT):
        sweep(x, labels, cv=3, progress=progress)
    with pytest.raises(InputError, match="progress is not a display"):
        sweep(x, labels, cv=3, progress="yes")  # pyright: ignore
    assert capsys.readouterr().err == ""  # shorter than a second
