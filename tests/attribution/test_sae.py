"""Autoencoders on states made of known directions, at our sites, and refused."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from attribution.sae import training as sae_training
from attribution.sae.autoencoder import check_latent
from attribution.sae.files import load_sae
from attribution.sae.measures import loss_recovered, measure_quality
from attribution.sae.splicing import spliced, steer_latents
from attribution.sae.training import KINDS, Kind, SaeConfig, train_sae
from capture.activations.capture import capture_activations
from capture.data.sequences import pad
from capture.network.hooks import count_hooks, patch, record
from evidence.errors import InputError
from tests.helpers.model_families import VOCABULARY, WIDTH, rows, tiny

pytestmark = [
    # Un-skip by installing sae-lens; it is an optional dependency.
    pytest.mark.skipif(find_spec("sae_lens") is None, reason="sae-lens not installed"),
    # What sae-lens and what it imports say while they load is not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

FEATURES, ON = 16, 2


def states(count=4096, seed=0):
    """Rows (row, WIDTH) of two of sixteen directions each, far from zero."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((FEATURES, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = np.stack([rng.permutation(FEATURES)[:ON] for _ in range(count)])
    strength = rng.uniform(1, 2, (count, ON))
    mixed = (strength[..., None] * directions[chosen]).sum(1)
    noise = 0.02 * rng.standard_normal((count, WIDTH))
    return (mixed + noise + 3).astype(np.float32), directions, chosen


def config(kind: Kind = "topk", **other):
    return replace(SaeConfig(kind, expansion=2, k=ON, epochs=12, batch_size=128, lr=5e-3), **other)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root, x = tmp_path_factory.mktemp("saes"), states()[0]
    return {kind: train_sae(x, "resid.1", root, config(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_the_directions_rows_are_made_of(trained, kind):
    sae, (fresh, directions, _) = trained[kind], states(1024, seed=0)
    found = measure_quality(sae, iter([fresh]))
    assert found.fvu < 0.3
    assert found.l0 < 3 * ON + 1
    rows_of = torch.nn.functional.normalize(sae.decoder, dim=1).numpy()
    matched = np.abs(rows_of @ directions.T).max(0)
    assert np.median(matched) > 0.8
    assert sae.metadata["quality"]["fvu"] == pytest.approx(found.fvu, abs=0.1)


def test_quality_is_what_its_words_say(trained):
    sae, x = trained["topk"], torch.from_numpy(states(500, seed=5)[0])
    z = sae.encode(x)
    wanted = (sae.decode(z) - x).square().sum() / (x - x.mean(0)).square().sum()
    whole = measure_quality(sae, iter([x]))
    parts = measure_quality(sae, iter([x[:100], x[100:]]))
    assert whole.fvu == pytest.approx(float(wanted), rel=1e-4)
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-6)
    assert whole.l0 == pytest.approx(float((z > 0).sum(1).float().mean()))
    assert whole.dead == pytest.approx(float((~(z > 0).any(0)).float().mean()))


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka"])
def test_thresholds_are_set_so_that_k_latents_fire(trained, kind):
    assert trained[kind].metadata["quality"]["l0"] == pytest.approx(ON, rel=0.02)
    if kind == "matryoshka":
        assert trained[kind].metadata["prefixes"][-1] == 2 * WIDTH


def test_the_same_request_is_found_and_another_is_not(tmp_path, monkeypatch):
    x = states(512)[0]
    small = config(epochs=1)
    first = train_sae(x, "resid.1", tmp_path, small)
    monkeypatch.setattr(sae_training, "_train", lambda *a: pytest.fail("trained anew"))
    cached = train_sae(x, "resid.1", tmp_path, small)
    assert torch.equal(first.decoder, cached.decoder)
    for other in (
        lambda: train_sae(x + 1, "resid.1", tmp_path, small),
        lambda: train_sae(x, "resid.2", tmp_path, small),
        lambda: train_sae(x, "resid.1", tmp_path, config(epochs=1, seed=1)),
    ):
        with pytest.raises(pytest.fail.Exception):
            other()


def test_interrupted_it_ends_with_the_same_weights(tmp_path, monkeypatch):
    x = states(1024)[0]
    settings = config(epochs=3)
    whole = train_sae(x, "resid.1", tmp_path / "a", settings, checkpoint_every=5)
    kept, calls = sae_training._checkpoint, []

    def stop_after_two(trainer, part):
        kept(trainer, part)
        calls.append(trainer.n_training_steps)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sae_training, "_checkpoint", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_sae(x, "resid.1", tmp_path / "b", settings, checkpoint_every=5)
    assert calls == [5, 10]
    resumed = train_sae(x, "resid.1", tmp_path / "b", settings, checkpoint_every=5)
    (one,), (two,) = ((tmp_path / name).glob("*") for name in "ab")
    a, b = (load_file(each / "sae_weights.safetensors") for each in (one, two))
    assert calls[2] == 15 and all(torch.equal(a[name], b[name]) for name in a)
    assert resumed.metadata == whole.metadata


def test_outliers_do_not_decide_what_is_learned(tmp_path):
    x = states(1024)[0].copy()
    x[::100] *= 1000
    sae = train_sae(x, "resid.1", tmp_path, config())
    kept = np.delete(x, np.arange(0, 1024, 100), axis=0)
    assert measure_quality(sae, iter([kept])).fvu < 0.3


@pytest.fixture(scope="module")
def at_site(tmp_path_factory):
    """A model and an autoencoder of its own states, all but the first position."""
    model, data = tiny("llama"), rows()
    found = capture_activations(model, data, ["resid.1"], range(1, 2))
    x = np.concatenate([found.site("resid.1")[:, 0]] * 20)
    x = x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    root = tmp_path_factory.mktemp("site")
    small = config(batch_size=32, k=8, epochs=10)
    return model, train_sae(x.astype(np.float32), "resid.1", root, small)


def test_splicing_with_the_error_changes_nothing(at_site):
    model, sae = at_site
    batch = pad(rows())
    with torch.no_grad():
        plain = model(**batch.model_inputs).logits
        with spliced(model, sae, lambda latents: latents):
            same = model(**batch.model_inputs).logits
        with spliced(model, sae, keep_error=False):
            lossy = model(**batch.model_inputs).logits
    torch.testing.assert_close(plain, same, atol=2e-4, rtol=1e-3)
    assert float((plain - lossy)[:, 1:].abs().max()) > 1e-3
    torch.testing.assert_close(plain[:, 0], lossy[:, 0])
    assert count_hooks(model) == 0


def test_steering_a_latent_moves_the_state_by_its_decoder_row(at_site):
    model, sae = at_site
    latent = int(np.setdiff1d(np.arange(sae.d_sae), sae.metadata["dead"])[0])
    batch = pad(rows())

    def state():
        with record(model, ["resid.1"]) as got, torch.no_grad():
            model(**batch.model_inputs)
        return got["resid.1"]

    plain = state()
    with steer_latents(model, sae, {latent: 2.5}):
        moved = state() - plain
    wanted = 2.5 * sae.decoder[latent]
    real = batch.attention_mask.bool()
    real[:, 0] = False
    torch.testing.assert_close(moved[real], wanted.expand_as(moved[real]), atol=1e-3, rtol=1e-3)
    assert float(moved[~real].abs().max()) == 0
    assert count_hooks(model) == 0


def test_generation_is_steered_at_every_step(at_site):
    model, sae = at_site
    latent = int(np.setdiff1d(np.arange(sae.d_sae), sae.metadata["dead"])[0])
    ids, seen = torch.tensor([[5, 9, 4]]), []
    with (
        steer_latents(model, sae, {latent: 5.0}),
        record(model, ["resid.1"], lambda name, v: seen.append(v.shape[1]) or v),
    ):
        model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert seen == [3, 1, 1]
    with patch(model, {}):
        assert count_hooks(model) == 0


def test_loss_recovered_lies_between_the_mean_and_the_model(at_site):
    model, sae = at_site
    found = loss_recovered(model, sae, rows())
    batch = pad(rows())
    with torch.no_grad():
        logits = model(**batch.model_inputs).logits[:, :-1]
    there = batch.attention_mask[:, 1:].bool()
    wanted = torch.nn.functional.cross_entropy(logits[there], batch.input_ids[:, 1:][there])
    assert found.plain == pytest.approx(float(wanted), abs=1e-4)
    share = (found.ablated - found.spliced) / (found.ablated - found.plain)
    assert found.recovered == pytest.approx(share)
    assert VOCABULARY == 61 and count_hooks(model) == 0


def test_bad_input_gives_one_clear_error(at_site, trained, tmp_path):
    model, sae = at_site
    x = states(512)[0]
    with pytest.raises(InputError, match="kind of autoencoder is unknown"):
        SaeConfig(kind="vanilla")  # pyright: ignore
    with pytest.raises(InputError, match="too few states"):
        train_sae(x[:10], "resid.1", tmp_path, config())
    with pytest.raises(InputError, match="NaN"):
        train_sae(x * np.nan, "resid.1", tmp_path, config())
    with pytest.raises(InputError, match="do not vary"):
        train_sae(x * 0 + 2, "resid.1", tmp_path, config())
    with pytest.raises(InputError, match="k is larger"):
        train_sae(x, "resid.1", tmp_path, config(k=1000))
    with pytest.raises(InputError, match="another width"):
        sae.encode(torch.zeros(3, WIDTH + 1))
    with pytest.raises(InputError, match="has no latent"):
        check_latent(sae, sae.d_sae)
    with pytest.raises(InputError, match="not a finite number"):
        steer_latents(model, sae, {check_live(sae): float("nan")})
    with pytest.raises(InputError, match=r"has no site 'resid\.9'"):
        spliced(model, type(sae)(sae.module, "resid.9"))
    dead = type(sae)(sae.module, sae.site, {"dead": [3]})
    with pytest.raises(InputError, match="latent 3 is dead"):
        steer_latents(model, dead, {3: 1.0})
    with pytest.raises(InputError, match="cannot be measured"):
        measure_quality(sae, iter([np.ones((4, WIDTH), np.float32)]))
    assert not list(tmp_path.iterdir())


def check_live(sae):
    return int(np.setdiff1d(np.arange(sae.d_sae), sae.metadata["dead"])[0])


def test_unsafe_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no autoencoder at"):
        load_sae(tmp_path / "nothing")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "sae.pt").write_bytes(b"not opened")
    (pickled / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match=r"sae\.pt may run code"):
        load_sae(pickled, "resid.1")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no autoencoder"):
        load_sae(empty)
    good = train_sae(states(512)[0], "resid.1", tmp_path / "s", config(epochs=1))
    folder = next((tmp_path / "s").iterdir())
    assert load_sae(folder).site == good.site == "resid.1"
    note = json.loads((folder / "exhume.json").read_text())
    (folder / "exhume.json").unlink()
    with pytest.raises(InputError, match="site of this autoencoder"):
        load_sae(folder)
    assert load_sae(folder, note["site"]).site == "resid.1"
    (folder / "sae_weights.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        load_sae(folder, "resid.1")
