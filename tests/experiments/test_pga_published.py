"""The published protocol, repeated: its definitions by brute force, and its traps."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks
from erasure.concept.md_pga import fit_md_pga
from evidence.errors import InputError
from evidence.seeds import torch_rng
from experiments.pga.interventions import projection_test, refit_attack
from experiments.pga.published_protocol import (
    VARIANTS,
    adversarial_probes,
    published_scores,
    token_split,
    toy_verdict,
)
from experiments.pga.readouts import logistic_readouts
from experiments.pga.utility import Utility
from tests.helpers.tiny_erasure import tiny_gpt2

KEYS, CONTEXTS, WIDTH = 5, 4, 8


def pools(seed, keys=KEYS, contexts=CONTEXTS, width=WIDTH, depths=2, spread=0.3):
    """Three pools of noise: a vector a key, and a little more a context."""
    rng = torch_rng(seed, "pools")
    found = []
    for _ in range(3):
        key = torch.randn(depths, keys, 1, width, generator=rng)
        near = torch.randn(depths, keys, contexts, width, generator=rng)
        found.append((key + spread * near).double())
    return found


def brute_force(first, second, depth):
    """Accuracy on each held-out key by scikit-learn's own probe."""
    found = []
    for key in range(first.shape[1]):
        kept = [k for k in range(first.shape[1]) if k != key]
        fit = [p[depth, kept].flatten(0, 1).numpy() for p in (first, second)]
        out = [p[depth, key].numpy() for p in (first, second)]
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=1.0, max_iter=2000, tol=1e-10)
        ).fit(np.concatenate(fit), np.repeat([1, 0], [len(fit[0]), len(fit[1])]))
        right = [model.predict(out[0]) == 1, model.predict(out[1]) == 0]
        found.append(np.concatenate(right).mean())
    return np.array(found)


def test_scores_are_those_of_scikit_learn_key_by_key():
    memorised, clean, others = pools(0)
    memorised[..., 0] += 1.5
    found = published_scores(memorised, clean, others)
    for depth in range(2):
        np.testing.assert_allclose(
            found.true.correct[:, depth], brute_force(memorised, clean, depth)
        )
        assert found.pure is not None
        np.testing.assert_allclose(found.pure.correct[:, depth], brute_force(clean, others, depth))


def test_gap_headline_and_rule():
    memorised, clean, others = pools(1, depths=3, keys=8)
    memorised[..., :4] += 2.0
    found = published_scores(memorised, clean, others)
    assert found.pure is not None
    gap = found.true.accuracy - found.pure.accuracy
    assert found.mean_gap == pytest.approx(gap[1:].mean())
    assert found.reading == "signal"
    alone = published_scores(memorised, clean)
    assert alone.gap is None and "not defined" in alone.reading


def test_shuffles_exchange_whole_keys_and_are_repeatable():
    memorised, clean, _ = pools(2, keys=7)
    memorised[..., 0] += 5.0
    first = published_scores(memorised, clean, seed=3)
    assert first.shuffled.shape == (5, 2)
    assert first.true.accuracy.min() > 0.9 > first.shuffled.mean()
    repeated = published_scores(memorised, clean, seed=3)
    assert np.array_equal(first.shuffled, repeated.shuffled)


def test_pure_noise_goes_below_chance_when_the_eraser_saw_the_test_items():
    """Do-not-copy 1 and 4, as the paper's protocol has it."""
    accuracy = []
    for seed in range(5):
        memorised, clean, _ = pools(seed, keys=7, contexts=1, width=512, depths=1)
        x = torch.cat([memorised, clean], 1).flatten(1, 2)
        eraser = fit_md_pga(x, torch.from_numpy(np.repeat([1, 0], 7)), 1)
        erased = [eraser.transform(p.flatten(1, 2))[:, :, None] for p in (memorised, clean)]
        accuracy.append(published_scores(erased[0], erased[1], shuffles=0).true.accuracy[0])
    assert np.mean(accuracy) < 0.05


def test_orientation_is_ignored_where_it_should_be():
    """Do-not-copy 1: an inversion is as much information as a hit."""
    verdict = toy_verdict(1e-4, (1.4, 1.45), [0.6, 0.1])
    assert verdict["probe"] and not verdict["probe, orientation ignored"]
    assert verdict["recall"] and verdict["perplexity"]
    assert not toy_verdict(0.2, (1.4, 3.0), [0.6])["recall"]


def test_a_gap_can_be_all_below_half_baseline():
    """Do-not-copy 5: noise alone gives gaps of the size of the headlines."""
    gaps = []
    for seed in range(10):
        found = published_scores(*pools(seed, keys=7, contexts=1, width=64), shuffles=0)
        assert found.gap is not None
        gaps.append(found.gap)
    assert np.abs(np.concatenate(gaps)).max() > 0.3
    assert np.mean(gaps) == pytest.approx(0.0, abs=0.15)


def test_one_random_draw_is_not_a_control():
    """Do-not-copy 3: the best layer of one draw is far from the mean of ten."""
    best = [
        published_scores(*pools(seed, keys=7, contexts=1, depths=4)[:2]).true.accuracy.max()
        for seed in range(8)
    ]
    assert max(best) - min(best) > 0.1 and np.mean(best) > 0.55


def test_six_variants_of_which_two_are_one():
    memorised, clean, _ = pools(3)
    memorised[..., 0] += 4.0
    found = adversarial_probes(memorised, clean)
    assert tuple(found) == VARIANTS
    assert np.array_equal(found[VARIANTS[0]].correct, found[VARIANTS[1]].correct)
    assert min(each.accuracy.mean() for each in found.values()) > 0.6


def test_token_split_leaks_unless_told_not_to():
    found = []
    for seed in range(4):
        rng = torch_rng(seed, "tokens")
        memorised = torch.randn(60, 300, generator=rng)
        clean = torch.randn(60, 300, generator=rng)
        before, leaked = token_split(memorised, clean, 1, seed=seed)
        _, honest = token_split(memorised, clean, 1, leak=False, seed=seed)
        found.append((before, leaked, honest))
    before, leaked, honest = np.mean(found, 0)
    assert before == pytest.approx(0.5, abs=0.1)
    assert leaked < 0.3
    assert honest == pytest.approx(0.5, abs=0.1)


def test_readouts_are_unit_in_raw_units_and_silent_on_equal_rows():
    memorised, clean, _ = pools(4)
    x = torch.cat([memorised, clean], 1).flatten(1, 2)
    labels = torch.from_numpy(np.repeat([1, 0], KEYS * CONTEXTS))
    x[1] = 2.0
    found = logistic_readouts()(x, labels)
    scale = StandardScaler().fit(x[0].numpy())
    probe = LogisticRegression(tol=1e-10, max_iter=5000)
    probe.fit(scale.transform(x[0].numpy()), labels.numpy())
    raw = probe.coef_[0] / scale.scale_
    np.testing.assert_allclose(found[0], raw / np.linalg.norm(raw), atol=1e-4)
    assert not found[1].any()
    with pytest.raises(InputError, match="rows of two classes"):
        logistic_readouts()(x, torch.ones_like(labels))


def test_role_swap_is_seen_where_perplexity_is_content():
    """Do-not-copy 10: perplexity within bounds, and yet the clean pool was learned."""
    swapped = Utility((1.40, 1.42), (-0.1, -2.0), (-2.3, -0.2))
    assert swapped.ratio < 1.05 and swapped.role_swap and not swapped.kept
    fair = Utility((1.40, 1.42), (-0.1, -2.3), (-2.3, -2.2))
    assert fair.kept and not fair.role_swap


SITES = ["embed", "resid.0", "resid.1", "resid.2"]


@contextmanager
def tiny_world():
    """A tiny model, its two pools of rows, and what the attacks call."""
    model = tiny_gpt2()
    rng = np.random.default_rng(0)
    rows = [
        Sequences(tuple(tuple(rng.integers(low, low + 15, 4)) for _ in range(12)), (4,) * 12)
        for low in (1, 12)
    ]

    def read():
        found = [capture_activations(model, each, SITES, "last").values for each in rows]
        first, second = (torch.from_numpy(x).double().reshape(4, 6, 2, -1) for x in found)
        return first, second

    yield model, read


def test_projection_removes_the_direction_at_its_depth_and_leaves_no_hook():
    with tiny_world() as (model, read):
        before = count_hooks(model)
        found = projection_test(model, SITES, 2, read, lambda: -1.0, lambda: -2.0)
        assert found.after.accuracy[2] < found.before.accuracy[2]
        assert np.array_equal(found.after.correct[:, :2], found.before.correct[:, :2])
        assert (found.recall_drop, found.other_drop) == (0.0, 0.0)
        assert found.reading in ("epiphenomenal", "distributed", "unclear")
        assert count_hooks(model) == before
        with pytest.raises(InputError, match="no such depth"):
            projection_test(model, SITES, 9, read, lambda: 0.0, lambda: 0.0)


def test_the_refitting_attacker_is_followed_until_it_is_beaten():
    with tiny_world() as (model, read):
        before = count_hooks(model)
        found = refit_attack(model, SITES, read, lambda: -1.0, depths=[1, 2], rounds=4, bound=0.55)
        assert len(found.accuracy) == found.rank + 1
        assert found.accuracy[0].max() > found.accuracy[-1].max()
        assert found.beaten == (found.accuracy[-1].max() < 0.55)
        assert found.cka.shape == (2,) and (found.cka <= 1).all()
        assert count_hooks(model) == before


def test_pools_that_do_not_pair_up_are_refused():
    memorised, clean, _ = pools(0)
    with pytest.raises(InputError, match="do not pair up key by key"):
        published_scores(memorised, clean[:, :3])
