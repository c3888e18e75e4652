"""The membership test: exact on noise, finds what is there, and nothing leaks in."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from sklearn.metrics import roc_auc_score

from erasure.concept.md_pga import fit_md_pga
from evidence.errors import InputError
from evidence.seeds import torch_rng
from probes.sweeps.membership_test import (
    FAMILIES,
    balanced_folds,
    delong_error,
    matched_pairs,
    membership,
    permute_labels_within_folds,
    split_sequences,
)

LABELS = np.repeat([1, 0], 12)
FEW = ("logistic", "mean difference", "rbf")


def noise(seed, sequences=24, width=30, sites=2):
    return torch.randn(sites, sequences, width, generator=torch_rng(seed, "noise")).double()


def planted(seed, shift, **sizes):
    x = noise(seed, **sizes)
    x[:, : x.shape[1] // 2, 0] += shift
    return x


def test_on_noise_p_is_uniform_and_auc_is_a_half():
    found = [
        membership({"last": noise(n)}, LABELS, families=FEW, n_permutations=79, seed=n)
        for n in range(40)
    ]
    p = [each.p_above for each in found]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean([each.auc.mean() for each in found]) == pytest.approx(0.5, abs=0.04)
    # The best of several columns is not a half, which is why it needs a null.
    assert np.mean([each.max_auc for each in found]) > 0.58


def test_a_signature_is_found_by_all_families_and_the_band_is_passed():
    x = planted(0, 0.0)
    x[:, :12] += 1.0
    found = membership({"last": x, "mean": x}, LABELS, n_permutations=99)
    assert found.families == FAMILIES and len(FAMILIES) == 7
    assert found.max_auc > found.null_95 and found.reading() == "present"
    assert found.p_above == found.min_p == 0.01
    assert bool((found.auc.max((0, 2)) > 0.8).all())
    frame = found.to_frame()
    assert len(frame) == 2 * 7 * 2
    assert "p 0.0" in repr(found)


def test_an_eraser_that_saw_the_test_rows_reads_as_inverted():
    """Do-not-copy 1 and 4: the published way goes under chance on nothing at all."""
    x = noise(3, sequences=28, width=400)
    labels = np.repeat([1, 0], 14)
    erased = fit_md_pga(x, torch.from_numpy(labels), 1).transform(x)
    found = membership(
        {"last": erased}, labels, families=["logistic"], n_folds=14, n_permutations=199
    )
    assert found.max_auc < 0.2
    assert found.reading() == "inverted"


@pytest.mark.parametrize("only_members", [False, True])
def test_erased_on_one_part_and_tested_on_the_other_nothing_leaks(only_members):
    """Fresh controls do not help where the members were the eraser's."""
    areas = {"seen": [], "disjoint": []}
    for seed in range(12):
        x = noise(seed, sequences=60, width=200, sites=1)
        members, clean, fresh = x[:, :20], x[:, 20:40], x[:, 40:]
        labels = torch.from_numpy(np.repeat([1, 0], 20))
        eraser = fit_md_pga(torch.cat([members, clean], 1), labels, 1)
        seen = torch.cat([members, fresh if only_members else clean], 1)
        found = membership(
            {"last": eraser.transform(seen)},
            labels.numpy(),
            families=["logistic"],
            n_permutations=0,
        )
        areas["seen"].append(found.max_auc)
        erase, test = split_sequences(20, 0.5, seed)
        half = torch.cat([members[:, erase], clean[:, erase]], 1)
        eraser = fit_md_pga(half, torch.from_numpy(np.repeat([1, 0], 10)), 1)
        left = torch.cat([members[:, test], clean[:, test]], 1)
        found = membership(
            {"last": eraser.transform(left)},
            np.repeat([1, 0], 10),
            families=["logistic"],
            n_permutations=0,
        )
        areas["disjoint"].append(found.max_auc)
    assert np.mean(areas["seen"]) < 0.4
    assert np.mean(areas["disjoint"]) == pytest.approx(0.5, abs=0.1)


def test_more_contexts_make_no_more_sequences():
    """Do-not-copy 2: repeats of a sequence change nothing but the states' noise."""
    x = noise(1)
    once = membership({"last": x}, LABELS, n_permutations=49)
    repeats = x[:, :, None].expand(-1, -1, 24, -1)
    many = membership({"last": repeats.mean(2)}, LABELS, n_permutations=49)
    assert many.sequences == once.sequences == 24
    np.testing.assert_allclose(many.auc, once.auc)
    with pytest.raises(InputError, match="one vector a site and sequence"):
        membership({"last": repeats}, LABELS)


def test_the_null_runs_the_whole_pipeline_on_every_permutation():
    x = noise(2, width=8)
    found = membership({"last": x}, LABELS, n_permutations=5, seed=9)
    folds = balanced_folds(LABELS, 5, 9)
    draws = permute_labels_within_folds(LABELS, folds, 5, 9)
    assert np.array_equal(draws[0], LABELS)
    for turn in range(5):
        rescored = _scored_afresh(x, draws[1 + turn], folds)
        np.testing.assert_allclose(found.null[turn, 0, 0], rescored, atol=0.02)


def _scored_afresh(x, labels, folds):
    """AUC a site by scikit-learn's own probe, fitted in every fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    out = []
    for rows in x.numpy():
        scores = np.zeros(len(labels))
        for train, test in zip(folds.train, folds.test, strict=True):
            model = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8))
            model.fit(rows[train], labels[train])
            scores[test] = model.decision_function(rows[test])
        out.append(roc_auc_score(labels, scores))
    return out


def test_exchanged_labels_keep_every_fold_balanced():
    folds = balanced_folds(LABELS, 5, 0)
    for row in permute_labels_within_folds(LABELS, folds, 50, 1):
        for test, train in zip(folds.test, folds.train, strict=True):
            assert 2 * row[test].sum() == test.sum()
            assert 2 * row[train].sum() == train.sum()


def test_few_sequences_say_how_small_a_p_they_can_give():
    x = noise(0, sequences=8)
    found = membership({"last": x}, np.repeat([1, 0], 4), n_folds=4, n_permutations=999)
    assert found.min_p == 2**-4


def test_order_of_sequences_and_units_do_not_matter():
    x = planted(4, 1.0, width=5)
    plain = membership({"last": x}, LABELS, families=FEW, n_permutations=0)
    scaled = membership({"last": x * 50 + 3}, LABELS, families=FEW, n_permutations=0)
    np.testing.assert_allclose(plain.auc, scaled.auc, atol=0.01)


def test_the_error_of_an_auc_is_delong_s_or_the_null_s():
    """Against the jackknife, and never less than what exchanged labels show."""
    rng = np.random.default_rng(0)
    scores, codes = rng.normal(size=60) + np.repeat([1.0, 0], 30), np.repeat([1, 0], 30)
    whole = [np.delete(np.arange(60), row) for row in range(60)]
    left = np.array([roc_auc_score(codes[k], scores[k]) for k in whole])
    parts = [left[:30], left[30:]]
    jackknife = np.sqrt(sum(29 / 30 * ((p - p.mean()) ** 2).sum() for p in parts))
    assert delong_error(scores, codes) == pytest.approx(jackknife, rel=0.02)
    found = membership({"last": noise(2)}, LABELS, families=["rbf"], n_permutations=199, n_folds=4)
    assert (found.standard_error >= found.null.std(0) - 1e-12).all()
    low, high = found.interval()
    np.testing.assert_allclose((low + high) / 2, found.auc)
    np.testing.assert_allclose(high - low, 2 * 1.6449 * found.standard_error, rtol=1e-4)


def test_equal_states_read_exactly_one_half():
    x = torch.ones(1, 24, 4)
    found = membership({"last": x}, LABELS, n_permutations=19)
    assert np.all(found.auc == 0.5) and found.p_value == 1.0
    assert found.reading() == "none"


def test_concordance_is_within_folds():
    x = planted(0, 6.0, width=3)
    found = membership({"last": x}, LABELS, families=["rbf"], n_permutations=0)
    assert found.concordance.min() > 0.8
    assert found.reading() == "not tested"
    assert np.isnan(found.null_95)


def test_splits_are_disjoint_and_whole():
    erase, test = split_sequences(41, 0.5, 3)
    assert set(erase) | set(test) == set(range(41)) and not set(erase) & set(test)
    with pytest.raises(InputError, match="both parts need two"):
        split_sequences(5, 0.1)


def test_pairs_are_matched_within_the_caliper():
    members, others = [-2.0, -1.0, -5.0], [-1.1, -4.0, -2.05, 9.0]
    pairs = matched_pairs(members, others, 0.2)
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (1, 0)]
    with pytest.raises(InputError, match="no member has a non-member within the caliper"):
        matched_pairs(members, [50.0], 0.2)


GOOD = {"last": noise(0)}


@pytest.mark.parametrize(
    ("views", "labels", "options", "message"),
    [
        (GOOD, np.repeat([1, 0], [10, 14]), {}, "must be equally many"),
        (GOOD, np.repeat([2, 0], 12), {}, "must say which rows are members"),
        (GOOD, LABELS, {"families": ["svm"]}, "no family 'svm'"),
        (GOOD, LABELS, {"families": []}, "nothing to test"),
        ({}, LABELS, {}, "nothing to test"),
        (GOOD, LABELS, {"n_folds": 1}, "folds cannot be used"),
        ({"last": noise(0) * np.nan}, LABELS, {}, "NaN or infinite"),
        ({"last": noise(0, sequences=6)}, LABELS, {}, r"Expected \(site, 24, d\)"),
        ({"a": noise(0), "b": noise(0, sites=3)}, LABELS, {}, "different numbers of sites"),
    ],
)
def test_bad_input_is_one_clear_error(views, labels, options, message):
    with pytest.raises(InputError, match=message):
        membership(views, labels, **options)


def test_many_sequences_are_no_trouble():
    # Their labels can be exchanged in more ways than there are numbers for in float64.
    x = noise(0, sequences=1200, width=2, sites=1)
    found = membership(
        {"last": x}, np.repeat([1, 0], 600), families=FEW[1:2], n_folds=2, n_permutations=9
    )
    assert found.min_p == 0.1
