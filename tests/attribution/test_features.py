"""Latents ranked against scikit-learn, and their effects against real ablation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from attribution.sae.autoencoder import Sae
from attribution.sae.features import (
    ablation_effect,
    best_score_by_prefix,
    changed_latents,
    expert_sets,
    jaccard_overlap,
    latent_attribution,
    rank_latents,
)
from capture.network.hooks import count_hooks, patch
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from tests.helpers.model_families import WIDTH, rows, tiny


class Plain:
    """ReLU of a fixed map: the interface of sae-lens without its import."""

    def __init__(self, latents=40):
        rng = torch.Generator().manual_seed(0)
        self.W_dec = torch.randn(latents, WIDTH, generator=rng) / WIDTH**0.5
        self.cfg = SimpleNamespace(d_in=WIDTH, d_sae=latents, architecture=lambda: "plain")

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T - 0.1)

    def decode(self, z):
        return z @ self.W_dec


def sae(note=None):
    return Sae(Plain(), "resid.1", note or {})


def latents(rng, rows=80):
    z = rng.random((rows, 12)) * (rng.random((rows, 12)) < 0.4)
    marks = np.arange(rows) % 4
    z[:, 3] = np.where(marks == 0, 1 + rng.random(rows), 0)
    z[:, 7] = np.where(marks <= 1, 1, 0.0)
    z[:, 9] = 1.0
    return z, {f"c{c}": marks == c for c in range(4)}


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_ranks_equal_scikit_learns(rng):
    z, marks = latents(rng)
    found = rank_latents(z, marks)
    for at, y in enumerate(marks.values()):
        for latent in range(z.shape[1]):
            on = z[:, latent] > 0
            assert found.f1[at, latent] == pytest.approx(f1_score(y, on))
            assert found.auc[at, latent] == pytest.approx(roc_auc_score(y, z[:, latent]))
            mean = z[y, latent].mean() - z[~y, latent].mean()
            assert found.difference[at, latent] == pytest.approx(mean)
    assert found.top("c0", 1).tolist() == [3]
    assert found.to_frame("c0").latent[0] == 3


def test_expert_sets_leave_out_what_serves_too_many(rng):
    z, marks = latents(rng)
    ranking = rank_latents(z, marks)
    free = expert_sets(ranking, 3)
    assert 7 in free["c0"] and all(len(each) == 3 for each in free.values())
    strict = expert_sets(ranking, 12, shared_by=2)
    assert all(9 not in each and 7 not in each for each in strict.values())
    table = jaccard_overlap({"a": [1, 2], "b": [2, 3], "c": [5]})
    np.testing.assert_allclose(table, [[1, 1 / 3, 0], [1 / 3, 1, 0], [0, 0, 1]])


def test_attribution_is_the_slope_of_switching_a_latent_off():
    model, data, found = tiny("llama"), rows(), sae()
    scores = latent_attribution(model, found, data)
    row, start = 2, data.answer_start[2]
    one = data[[row]]
    first = type(data)((one.ids[0][: start + 1],), (start,))
    latent = int(np.abs(scores[row]).argmax())

    def part(share):
        def edit(value):
            out = value.clone()
            own = found.encode(value[:, start - 1])[:, latent]
            out[:, start - 1] -= share * own[:, None] * found.decoder[latent]
            return out

        with patch(model, {"resid.1": edit}):
            return score_answers(model, first).logprob[0]

    slope = (part(-0.02) - part(0.02)) / 0.04
    assert scores[row, latent] == pytest.approx(slope, rel=0.02)
    whole = part(0.0) - part(1.0)
    assert ablation_effect(model, found, first, [latent])[0] == pytest.approx(whole, abs=1e-4)
    assert count_hooks(model) == 0


def test_changed_latents_come_with_the_rows_they_fire_on(rng):
    x, _ = latents(rng)
    y = x.copy()
    y[:, 3] = 0
    y[5, 6] = 9.0
    found = changed_latents(x, y)
    assert [each.latent for each in found] == [3, 6]
    assert found[0].change < 0 and found[0].top_after == ()
    assert set(found[0].top_before) <= set(range(0, 80, 4))
    assert found[1].top_after[0] == 5
    assert changed_latents(x, x) == []


def test_absorption_shows_in_which_prefix_a_concept_is(rng):
    z, marks = latents(rng)
    nested = sae({"prefixes": [2, 4, 12]})
    found = best_score_by_prefix(nested, marks["c0"], z, roc_auc_score)
    assert found[2] < 0.9 and found[4] == found[12] == 1.0


def test_bad_input_gives_one_clear_error(rng):
    z, marks = latents(rng)
    with pytest.raises(InputError, match="differ in rows"):
        rank_latents(z[1:], marks)
    with pytest.raises(InputError, match="by all rows or by none"):
        rank_latents(z, {"all": np.ones(80)})
    with pytest.raises(InputError, match="no such ranking"):
        rank_latents(z, marks).top("c9", 1)
    with pytest.raises(InputError, match="no latent is left"):
        expert_sets(rank_latents(z, marks), 2, shared_by=1, min_active=0.0)
    with pytest.raises(InputError, match="do not match"):
        changed_latents(z, z[1:])
    with pytest.raises(InputError, match="latent 3 is dead"):
        ablation_effect(tiny("llama"), sae({"dead": [3]}), rows(), [3])
    with pytest.raises(InputError, match="has no latent 40"):
        ablation_effect(tiny("llama"), sae(), rows(), [40])
    with pytest.raises(InputError, match="no nested prefixes"):
        best_score_by_prefix(sae(), marks["c0"], z, roc_auc_score)
