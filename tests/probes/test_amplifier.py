"""The amplifier against scikit-learn's ridge, on planted classes and on noise."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from evidence.errors import InputError
from probes.concepts.answer_map import PENALTIES, fit_answer_map

ROWS, WIDTH = 240, 16


def world(rng, noise=0.3):
    """Twelve classes in two kinds, kinds far apart."""
    classes = np.arange(ROWS) % 12
    kinds = classes % 2
    places = rng.standard_normal((12, WIDTH))
    far = 10 * rng.standard_normal((2, WIDTH))
    states = places[classes] + far[kinds] + noise * rng.standard_normal((ROWS, WIDTH))
    return states, classes, kinds, places


def fitted(rng, noise=0.3):
    states, classes, kinds, places = world(rng, noise)
    half = np.arange(ROWS) < ROWS // 2
    found = fit_answer_map(states[half], classes[half], kinds[half], states[~half], classes[~half])
    return found, states, classes, kinds, places, half


def test_it_is_scikit_learns_ridge_onto_class_offsets(rng):
    found, states, classes, kinds, _, half = fitted(rng)
    x, y, k = states[half], classes[half], kinds[half]
    mean = {c: x[y == c].mean(0) for c in np.unique(y)}
    kind = {c: x[k == c].mean(0) for c in np.unique(k)}
    targets = np.stack([mean[c] - kind[d] for c, d in zip(y, k, strict=True)])
    centered = x - x.mean(0)
    sizes = np.linalg.svd(centered, compute_uv=False)
    alpha = float(found.penalty * np.mean(sizes**2))
    ridge = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky")
    wanted = ridge.fit(centered, targets).predict(states[~half] - x.mean(0))
    got = found.apply(torch.from_numpy(states[~half])).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-8)
    assert found.penalty in PENALTIES


def test_what_is_written_to_unseen_rows_is_their_class_and_not_their_kind(rng):
    found, states, classes, kinds, places, half = fitted(rng)
    applied = found.apply(torch.from_numpy(states[~half])).numpy()
    center = np.stack([places[kinds_::2].mean(0) for kinds_ in (0, 1)])
    wanted = places[classes] - center[kinds]
    cosine = (applied * wanted[~half]).sum(1)
    cosine /= np.linalg.norm(applied, axis=1) * np.linalg.norm(wanted[~half], axis=1)
    assert cosine.min() > 0.5 and cosine.mean() > 0.75


def test_turned_at_random_it_writes_as_much_elsewhere(rng):
    found, states, *_ = fitted(rng)
    x = torch.from_numpy(states)
    plain, rotated = found.apply(x), found.randomly_rotated(rng).apply(x)
    torch.testing.assert_close(plain.norm(dim=1), rotated.norm(dim=1))
    cosine = torch.cosine_similarity(plain, rotated)
    assert float(cosine.mean().abs()) < 0.5


def test_rows_of_noise_get_little_of_anything(rng):
    _, classes, kinds, _ = world(rng)
    noise = rng.standard_normal((ROWS, WIDTH))
    half = np.arange(ROWS) < ROWS // 2
    found = fit_answer_map(noise[half], classes[half], kinds[half], noise[~half], classes[~half])
    applied = found.apply(torch.from_numpy(noise[~half])).numpy()
    mean = np.stack([applied[classes[~half] == c].mean(0) for c in range(12)])
    # Unseen rows of one class have nothing written to them in common.
    assert np.linalg.norm(mean, axis=1).mean() < 0.5 * np.linalg.norm(applied, axis=1).mean()


@pytest.mark.parametrize(
    ("classes", "kinds"),
    [([0, 1, 2, 3], [0, 0, 1, 1, 1]), ([0, 0, 1, 1], [0, 1, 0, 1]), ([0] * 4, [0] * 4)],
    ids=["rows", "class of two kinds", "one class"],
)
def test_bad_input_gives_one_clear_error(rng, classes, kinds):
    with pytest.raises(InputError):
        fit_answer_map(rng.standard_normal((5, 3)), classes, kinds, np.zeros((0, 3)), [])
