"""The other erasers: what each removes, and what it cannot."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from torch.testing import assert_close

from erasure.concept.adversary import fit_logistic_probe
from erasure.concept.inlp import IterativeNullspace
from erasure.concept.leace import Leace
from erasure.concept.moments import Moments
from erasure.concept.projections import MeanDifference, RandomProjection, SpectralRemoval
from erasure.concept.rlace import RelaxedAdversarial, project_to_fantope
from evidence.arrays import RowsError
from tests.helpers.concept_rows import labelled, mean_gap, onehot


def unit(vector):
    return vector / np.linalg.norm(vector)


def read(rows, labels):
    return LogisticRegression(max_iter=2000).fit(rows, labels).score(rows, labels)


def test_mean_difference_is_the_projection_off_that_direction(rng):
    rows, labels = labelled(rng)
    away = unit(rows[labels == 1].mean(0) - rows[labels == 0].mean(0))
    after = MeanDifference().fit(rows, labels).transform(rows)
    centered = rows - rows.mean(0)
    assert_close(after, rows - np.outer(centered @ away, away))


def test_mean_differences_of_many_classes_all_go(rng):
    rows, labels = labelled(rng, classes=5)
    eraser = MeanDifference().fit(rows, labels)
    assert eraser.rank_ == 4
    assert mean_gap(rows, labels) > 0.2
    assert mean_gap(eraser.transform(rows), labels) < 1e-12
    assert read(eraser.transform(rows), labels) < 0.3 < read(rows, labels)


def test_a_class_that_was_announced_and_never_came_does_no_harm(rng):
    rows, labels = labelled(rng, classes=3)
    absent = Moments(classes=[0, 1, 2, 3]).update(rows, labels)
    for kind in (MeanDifference, SpectralRemoval, Leace):
        wanted = kind().fit(rows, labels).transform(rows)
        assert_close(kind().fit_moments(absent).transform(rows), wanted)


def test_classes_apart_by_rounding_alone_have_no_difference(rng):
    half = rng.standard_normal((100, 6))
    rows, labels = np.vstack([half, half]), np.repeat([0, 1], 100)
    assert MeanDifference().fit(rows, labels).rank_ == 0
    assert SpectralRemoval().fit(rows, labels).rank_ == 0


def test_spectral_removal_takes_the_first_directions_of_covariance(rng):
    rows, labels = labelled(rng, classes=4)
    cross = (rows - rows.mean(0)).T @ onehot(labels)
    first, second, *_ = np.linalg.svd(cross)[0].T
    matrix = SpectralRemoval(rank=2).fit(rows, labels).eraser_.matrix.numpy()
    assert_close(matrix, np.eye(10) - np.outer(first, first) - np.outer(second, second))
    # All of them are the class means' span; two of the three leave a trace.
    whole = SpectralRemoval().fit(rows, labels)
    assert_close(whole.transform(rows), MeanDifference().fit(rows, labels).transform(rows))
    assert mean_gap(SpectralRemoval(rank=2).fit(rows, labels).transform(rows), labels) > 0.01


def test_random_projections_are_as_they_say(rng):
    rows, labels = labelled(rng, sites=3)
    control = RandomProjection(rank=(1, 0, 4), seed=1).fit(rows)
    assert control.rank_ == (1, 0, 4)
    assert np.array_equal(control.transform(rows)[1], rows[1])
    repeated = RandomProjection(rank=(1, 0, 4), seed=1).fit(rows, labels)
    assert np.array_equal(repeated.transform(rows), control.transform(rows))
    other = RandomProjection(rank=(1, 0, 4), seed=2).fit(rows)
    assert np.abs(other.transform(rows)[2] - control.transform(rows)[2]).max() > 0.1


def test_random_directions_point_everywhere(rng):
    """The mean projector off one of d directions is the identity less 1 / d."""
    rows = rng.standard_normal((400, 5, 4))
    mean = RandomProjection(rank=1).fit(rows).eraser_.matrix.mean(0)
    assert_close(mean, 0.75 * torch.eye(4, dtype=torch.float64), atol=0.05, rtol=0)


def by_hand(rows, target, rounds, penalty):
    """INLP in the words of the paper, one ridge regression after another."""
    centered, removed = rows - rows.mean(0), []
    alpha = penalty * centered.var(0).mean() * len(rows)
    left = centered
    for _ in range(rounds):
        weights = Ridge(alpha=alpha).fit(left, target).coef_.ravel()
        for each in removed:
            weights = weights - each * (each @ weights)
        removed.append(unit(weights))
        basis = np.array(removed)
        left = centered - centered @ basis.T @ basis
    return left + rows.mean(0)


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_ridge_rounds_are_scikit_learns_one_after_another(rng, rounds):
    rows, labels = labelled(rng)
    eraser = IterativeNullspace(max_probes=rounds, tolerance=0.0).fit(rows, labels)
    assert eraser.rank_ == rounds
    assert_close(eraser.transform(rows), by_hand(rows, labels, rounds, 1e-3), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("reader", ["ridge", "logistic"])
def test_rounds_end_where_a_new_reader_finds_nothing(rng, reader):
    rows, labels = labelled(rng, n=2000, d=8, classes=3)
    eraser = IterativeNullspace(reader, tolerance=0.02).fit(rows, labels)
    assert isinstance(eraser.rank_, int) and 2 <= eraser.rank_ < 8
    # scikit-learn's own reader, which had no part in it.
    assert read(rows, labels) > 0.6
    assert read(eraser.transform(rows), labels) < 0.40


def test_sites_end_apart(rng):
    rows, labels = labelled(rng, sites=3)
    rows[1] = rng.standard_normal(rows[1].shape)  # no concept here
    ranks = IterativeNullspace(tolerance=0.1).fit(rows, labels).rank_
    assert isinstance(ranks, tuple)
    assert ranks[1] == 0 < min(ranks[0], ranks[2])


def test_everything_can_be_removed_and_no_more(rng):
    rows, labels = labelled(rng, n=30, d=4)
    for reader in ("ridge", "logistic"):
        eraser = IterativeNullspace(reader, max_probes=50, tolerance=0.0).fit(rows, labels)
        assert isinstance(eraser.rank_, int) and eraser.rank_ <= 4
        assert_close(eraser.transform(eraser.transform(rows)), eraser.transform(rows))


def test_numbers_need_the_ridge_reader_and_moments_have_no_rows(rng):
    rows, labels = labelled(rng)
    numbers = rows[:, 0] + rng.standard_normal(300)
    eraser = IterativeNullspace(tolerance=0.01).fit(rows, numbers)
    after = eraser.transform(rows)
    assert Ridge(alpha=1e-9).fit(rows, numbers).score(rows, numbers) > 0.5
    assert Ridge(alpha=1.0).fit(after, numbers).score(after, numbers) < 0.02
    with pytest.raises(RowsError, match="cannot be fitted on moments"):
        IterativeNullspace("logistic").fit_moments(Moments().update(rows, labels))


def test_the_reader_is_scikit_learns(rng):
    rows, labels = labelled(rng, classes=3, offset=0.0)
    member = torch.from_numpy(onehot(labels))
    ours = fit_logistic_probe(torch.from_numpy(rows), member, penalty=1e-2, tolerance=1e-9)
    theirs = LogisticRegression(C=1 / (1e-2 * 300), tol=1e-10, solver="newton-cg")
    theirs.fit(rows, labels)
    assert_close(ours.coef.T.numpy(), theirs.coef_, rtol=1e-4, atol=1e-5)
    assert ours.accuracy == theirs.score(rows, labels)


def test_the_adversarial_projection_finds_the_only_one_there_is(rng):
    """Two classes have equal means only off the direction between them."""
    rows, labels = labelled(rng, n=400, d=6)
    eraser = RelaxedAdversarial(steps=300).fit(rows, labels)
    away = torch.from_numpy(unit(rows[labels == 1].mean(0) - rows[labels == 0].mean(0)))
    assert float((eraser.eraser_.left[:, 0] @ away).abs()) > 0.99
    assert float(eraser.loss_[0]) > 0.99 * np.log(2)
    assert read(rows, labels) > 0.75
    assert read(eraser.transform(rows), labels) < 0.56


def test_with_fewer_rows_than_features_the_game_is_played_in_their_span(rng):
    rows, labels = labelled(rng, n=12, d=30)
    eraser = RelaxedAdversarial(rank=2, steps=40).fit(rows, labels).eraser_
    basis = np.linalg.svd(rows - rows.mean(0))[2][:11]
    outside = eraser.left.numpy() - basis.T @ basis @ eraser.left.numpy()
    assert np.abs(outside).max() < 1e-8
    with pytest.raises(RowsError, match="span fewer dimensions"):
        RelaxedAdversarial(rank=12).fit(rows, labels)


def test_the_fantope_is_reached_by_the_shortest_way(rng):
    """Against a general solver, on eigenvalues; points inside stay where they are."""
    from scipy.optimize import minimize

    draw = rng.standard_normal((5, 5))
    matrix = torch.from_numpy(draw + draw.T)
    near = project_to_fantope(matrix, 2)
    sizes = np.linalg.eigvalsh(matrix.numpy())
    found = minimize(
        lambda v: np.square(v - sizes).sum(),
        np.full(5, 0.4),
        jac=lambda v: 2 * (v - sizes),
        bounds=[(0, 1)] * 5,
        constraints={"type": "eq", "fun": lambda v: v.sum() - 2},
        method="SLSQP",
    )
    assert_close(np.linalg.eigvalsh(near.numpy()), np.sort(found.x), rtol=0, atol=1e-5)
    assert_close(project_to_fantope(near, 2), near)
