"""Latents made louder or put in from outside, against plain loops."""

import numpy as np
import pytest
import torch

from attribution.sae.latents import (
    LatentAmplifier,
    decode_difference,
    draw_control_latents,
    live_latents,
    match_norms,
)
from attribution.sae.training import StoredRows
from capture.activations.capture import Activations
from evidence.errors import InputError
from tests.attribution.test_features import sae
from tests.helpers.model_families import WIDTH


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def rows(rng):
    return rng.standard_normal((30, WIDTH)).astype(np.float32)


def with_encoder(note=None):
    found = sae(note)
    found.module.W_enc = found.module.W_dec.T.clone()
    return found


def test_what_is_written_is_each_latents_excess_times_its_decoder_row(rows):
    found, chosen = sae(), np.array([3, 7])
    steering = LatentAmplifier.fit(found, chosen, rows)
    x = torch.from_numpy(rows)
    z = found.encode(x)
    wanted = sum((z[:, [at]] - z[:, at].mean()) * found.decoder[at] for at in chosen.tolist())
    torch.testing.assert_close(steering.apply(x), wanted)
    # On the rows it was fitted on nothing is added on average.
    assert float(steering.apply(x).mean(0).abs().max()) < 1e-6
    assert steering.apply(x.double()).dtype == torch.float64


def test_the_control_writes_as_much_along_other_live_latents(rows, rng):
    found = sae({"dead": [0, 1, 2]})
    steering = LatentAmplifier.fit(found, np.array([3, 7, 9]), rows)
    other, x = steering.randomly_rotated(rng), torch.from_numpy(rows)
    assert not set(other.latents.tolist()) & {0, 1, 2, 3, 7, 9}
    assert len(other.latents) == 3
    mine, theirs = (each.apply(x).square().sum() for each in (steering, other))
    assert float(theirs) == pytest.approx(float(mine), rel=1e-4)


def test_the_linear_part_is_a_product_of_low_rank_and_knows_no_bias(rows):
    found, chosen = with_encoder(), np.array([2, 5, 11])
    x = torch.from_numpy(rows)
    part = decode_difference(found, x, chosen)
    matrix = found.module.W_enc[:, [2, 5, 11]] @ found.decoder[[2, 5, 11]]
    torch.testing.assert_close(part, x @ matrix)
    torch.testing.assert_close(decode_difference(found, 3 * x, chosen), 3 * part)
    assert int(torch.linalg.matrix_rank(part)) == 3
    assert float(decode_difference(found, 0 * x, chosen).abs().max()) == 0


def test_lengths_are_matched_vector_by_vector(rows):
    x = torch.from_numpy(rows)
    y = torch.roll(x, 1, 0) * 7
    found = match_norms(y, x)
    torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(found, y), torch.ones(len(x)))
    assert float(match_norms(0 * y, x).abs().max()) == 0


def test_bad_latents_give_one_clear_error(rows, rng):
    found = with_encoder({"dead": [4]})
    with pytest.raises(InputError, match="no latents to amplify"):
        LatentAmplifier.fit(found, np.array([], dtype=int), rows)
    with pytest.raises(InputError, match="latent 4 is dead"):
        LatentAmplifier.fit(found, np.array([4]), rows)
    with pytest.raises(InputError, match="latent 3 is constant"):
        LatentAmplifier.fit(found, np.array([3]), np.ones_like(rows))
    with pytest.raises(InputError, match="has no latent 40"):
        decode_difference(found, torch.from_numpy(rows), np.array([40]))
    with pytest.raises(InputError, match="another width"):
        decode_difference(found, torch.zeros(2, WIDTH + 1), np.array([1]))
    assert len(live_latents(found)) == 39
    with pytest.raises(InputError, match="too few other latents"):
        draw_control_latents(found, np.arange(5, 35), rng)


@pytest.mark.parametrize("masked", [False, True])
def test_stored_rows_are_the_plain_table_however_they_are_cut(rng, masked):
    values = rng.standard_normal((7, 4, 3)).astype(np.float32)
    mask = rng.random((7, 4)) < 0.6 if masked else np.ones((7, 4), dtype=bool)
    mask[2] = not masked
    kept = Activations(("a",), {"a": values}, mask if masked else None)
    table, found = values[mask], StoredRows(kept, "a")
    assert found.shape == table.shape and len(found) == len(table)
    for start in range(len(table) + 1):
        for stop in range(start, len(table) + 3):
            np.testing.assert_array_equal(found[start:stop], table[start:stop])
    np.testing.assert_array_equal(found[-3:], table[-3:])


def test_stored_rows_of_one_position_and_refused(rng):
    values = rng.standard_normal((5, 3)).astype(np.float32)
    kept = Activations(("a", "b"), {"a": values, "b": values[:, 0]})
    np.testing.assert_array_equal(StoredRows(kept, "a")[1:4], values[1:4])
    with pytest.raises(InputError, match="'c' was not captured"):
        StoredRows(kept, "c")
    with pytest.raises(InputError, match="do not have one width"):
        StoredRows(kept, "b")
    with pytest.raises(InputError, match="contiguous slices"):
        StoredRows(kept, "a")[::2]
