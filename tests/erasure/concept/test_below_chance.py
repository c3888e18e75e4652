"""An eraser fitted on the rows a probe is tested on drives it below chance.

That is arithmetic, not unlearning: with all class means equal, leaving a row out
moves its class's mean to the other side of the rest. Here with noise, in which there
is nothing to erase, and with a concept that is still there in new rows.
"""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    BaseCrossValidator,
    LeaveOneOut,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline

from erasure.concept.inlp import IterativeNullspace
from erasure.concept.label_aware import OracleLeace
from erasure.concept.leace import Leace
from erasure.concept.projections import MeanDifference, RandomProjection, SpectralRemoval

GUARDED = [Leace(), Leace(shrinkage="oas"), MeanDifference(), SpectralRemoval()]
FOLDS = StratifiedKFold(5)


def noise(seed, n=40, d=12):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), np.arange(n) % 2


def scores(probe, rows, labels, folds: BaseCrossValidator = FOLDS):
    return cross_val_score(probe, rows, labels, cv=folds).mean()


@pytest.mark.parametrize("eraser", GUARDED)
@pytest.mark.parametrize("seed", range(3))
def test_of_noise_the_nearest_mean_gets_every_left_out_row_wrong(eraser, seed):
    rows, labels = noise(seed)
    probe = NearestCentroid()
    erased = eraser.fit(rows, labels).transform(rows)
    assert scores(probe, erased, labels, LeaveOneOut()) == 0.0
    oracle_erased = OracleLeace.fit(rows, labels).transform(rows, labels)
    assert scores(probe, oracle_erased, labels, LeaveOneOut()) == 0.0
    # So it is the fit on these rows, not the dimension that is gone.
    control = RandomProjection(rank=1, seed=seed).fit(rows).transform(rows)
    assert scores(probe, control, labels, LeaveOneOut()) > 0.2


@pytest.mark.parametrize("eraser", [Leace(), MeanDifference(), IterativeNullspace(max_probes=2)])
def test_of_noise_probes_are_below_chance_unless_the_eraser_is_fitted_elsewhere(eraser):
    probe = LogisticRegression()
    same, nested, apart = [], [], []
    for seed in range(20):
        rows, labels = noise(seed)
        others, theirs = noise(1000 + seed)
        erased = eraser.fit(rows, labels).transform(rows)
        same.append(scores(probe, erased, labels))
        nested.append(scores(make_pipeline(eraser, probe), rows, labels))
        elsewhere = eraser.fit(others, theirs).transform(rows)
        apart.append(scores(probe, elsewhere, labels))
    assert np.mean(same) < 0.3
    for sound in (nested, apart):
        # The standard error of the mean of twenty is about 0.02.
        assert abs(np.mean(sound) - 0.5) < 0.06


def test_below_chance_on_its_rows_the_concept_is_there_in_new_ones():
    rng = np.random.default_rng(0)
    shift = rng.standard_normal(30)

    def draw(n):
        labels = np.arange(n) % 2
        return rng.standard_normal((n, 30)) + 0.7 * np.outer(labels, shift), labels

    rows, labels = draw(40)
    fresh, theirs = draw(600)
    probe = LogisticRegression()
    assert scores(probe, rows, labels) > 0.8
    leace = Leace(shrinkage="oas").fit(rows, labels)
    assert scores(probe, leace.transform(rows), labels) < 0.3
    # Chance is 0.5, with a standard error of 0.02.
    assert scores(probe, leace.transform(fresh), theirs) > 0.65
