"""Every kind and normalization of sae-lens against sae-lens itself, on a tiny model."""

import json
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution.sae.autoencoder import Sae
from attribution.sae.features import ablation_effect, latent_attribution, rank_latents
from attribution.sae.files import load_sae
from attribution.sae.hook_names import site_name, site_of_hook
from attribution.sae.latents import LatentAmplifier, decode_difference
from attribution.sae.measures import loss_recovered, measure_quality
from attribution.sae.splicing import spliced, steer_latents
from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences, pad
from capture.network.hooks import count_hooks, patch, record
from evidence.errors import InputError
from tests.helpers.model_families import VOCABULARY, WIDTH, rows, tiny

pytestmark = [
    pytest.mark.skipif(find_spec("sae_lens") is None, reason="sae-lens not installed"),
    # What sae-lens and what it imports say while they load is not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

LATENTS = 40
NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale", "expected_average_only_in")
KINDS = ("standard", "topk", "jumprelu", "gated", "matching_pursuit", "abstopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 8},
    "abstopk": {"k": 8},
    "matching_pursuit": {"max_iterations": 6},
}
SETTINGS |= {kind: {"d_out": WIDTH, "apply_b_dec_to_input": False} for kind in TRANSCODERS}


def build(kind, **settings):
    from sae_lens.registry import get_sae_class

    cls, config = get_sae_class(kind)
    own: dict[str, Any] = {"d_in": WIDTH, "d_sae": LATENTS} | SETTINGS.get(kind, {}) | settings
    module = cls(config(**own))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    hook, out = "blocks.1.hook_resid_post", None
    if kind in TRANSCODERS:
        hook, out = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    module.cfg.metadata.hook_name, module.cfg.metadata.hook_name_out = hook, out
    return module.eval().requires_grad_(False)


CASES = [(kind, norm, "float32") for kind in KINDS for norm in NORMALIZATIONS]
CASES += [(kind, norm, "float32") for kind in TRANSCODERS for norm in ("none", "layer_norm")]
CASES += [("standard", norm, dtype) for norm in NORMALIZATIONS for dtype in ("float16", "bfloat16")]
CASES += [("topk", "layer_norm", "bfloat16")]


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@torch.no_grad()
def at(model, batch, *sites):
    with record(model, list(sites)) as got:
        model(**batch.model_inputs)
    return [got[site] for site in sites]


@torch.no_grad()
def mlp_input(model, batch):
    seen = []
    handle = model.model.layers[1].mlp.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    model(**batch.model_inputs)
    handle.remove()
    return seen[0]


def real_after_first(batch):
    mask = batch.attention_mask.bool()
    return mask & (mask.cumsum(1) > 1)


@pytest.mark.parametrize(("kind", "norm", "dtype"), CASES)
def test_it_computes_what_sae_lens_computes(model, tmp_path, kind, norm, dtype):
    from sae_lens import SAE

    build(kind, normalize_activations=norm, dtype=dtype).save_model(tmp_path)
    ours, theirs = load_sae(tmp_path), SAE.load_from_disk(tmp_path)
    batch = pad(rows())
    (states,) = at(model, batch, ours.site)
    inputs = mlp_input(model, batch) if ours.is_transcoder else states
    # sae-lens does not convert what goes around the latents.
    wanted_latents = theirs.encode(inputs)
    wanted = theirs(inputs.to(theirs.dtype)).float()
    assert torch.equal(ours.encode(inputs), wanted_latents)
    assert torch.equal(ours.reconstruct(inputs.to(theirs.dtype)).float(), wanted)
    own = vars(ours.module)
    assert not {"ln_mu", "ln_std", "x_norm_coeff"} & set(own)

    with spliced(model, ours, keep_error=False):
        (seen,) = at(model, batch, ours.site)
    real = real_after_first(batch)
    torch.testing.assert_close(seen[real], ours.reconstruct(inputs)[real].float())
    assert torch.equal(seen[~real], states[~real])
    with spliced(model, ours):
        (same,) = at(model, batch, ours.site)
    assert torch.equal(same, states)

    # Adding to a latent, with the error kept, as sae-lens would decode it.
    more = ours.encode(inputs)
    more[..., 3] += 2.5
    step = ours.decode(more, inputs).float() - ours.reconstruct(inputs).float()
    with steer_latents(model, ours, {3: 2.5}):
        (moved,) = at(model, batch, ours.site)
    coarse = {"float16": 3e-2, "bfloat16": 3e-1, "float32": 1e-4}[dtype]
    torch.testing.assert_close((moved - states)[real], step[real], atol=coarse, rtol=coarse)
    with spliced(model, ours, lambda z: z + 2.5 * (torch.arange(LATENTS) == 3)):
        (edited,) = at(model, batch, ours.site)
    torch.testing.assert_close((edited - states)[real], step[real], atol=coarse, rtol=coarse)
    assert count_hooks(model) == 0

    flat, target = inputs[real], states[real]
    chunk = (flat, target) if ours.is_transcoder else flat
    found = measure_quality(ours, iter([chunk]))
    error = (ours.reconstruct(flat).float() - target).square().sum()
    assert found.fvu == pytest.approx(
        float(error / (target - target.mean(0)).square().sum()), rel=1e-3
    )
    active = theirs.encode(flat) != 0
    assert found.l0 == pytest.approx(float(active.sum(1).float().mean()))
    assert found.dead == pytest.approx(float((~active.any(0)).float().mean()))
    lost = loss_recovered(model, ours, rows())
    assert np.isfinite([lost.plain, lost.spliced, lost.ablated, lost.recovered]).all()


def test_batch_wise_kinds_are_those_of_sae_lens_after_training(model, tmp_path):
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    module = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=LATENTS, k=4))
    with pytest.raises(InputError, match="chooses the active latents of a whole batch"):
        Sae(module, "resid.1")
    module.topk_threshold.fill_(0.05)
    module.save_inference_model(str(tmp_path))
    ours = load_sae(tmp_path, "resid.1")
    x = torch.randn(7, WIDTH)
    assert torch.equal(ours.encode(x), ours.module.encode(x))


def test_decoder_rows_are_what_one_unit_adds():
    ours = Sae(build("topk", rescale_acts_by_decoder_norm=True))
    x = torch.randn(5, WIDTH)
    z = ours.encode(x)
    step = ours.decode(z + torch.eye(LATENTS)[7], x) - ours.decode(z, x)
    torch.testing.assert_close(step, ours.decoder[7].expand_as(step), atol=1e-5, rtol=1e-4)


def test_what_depends_on_the_states_asks_for_them():
    scaled, skip = (
        Sae(build("standard", normalize_activations="layer_norm")),
        Sae(build("skip_transcoder")),
    )
    x = torch.randn(3, WIDTH)
    for sae, reason in ((scaled, "rescales each state"), (skip, "adds a map of the states")):
        with pytest.raises(InputError, match=reason):
            sae.decode(sae.encode(x))
        with pytest.raises(InputError, match="differ in rows"):
            sae.decode(sae.encode(x), x[:2])
    with pytest.raises(InputError, match="does not encode a difference"):
        decode_difference(scaled, x, np.array([1]))
    torch.testing.assert_close(scaled.output_scale(x), x.std(-1, keepdim=True))
    # Latents of one batch of states are decoded with the coefficients of that batch.
    first, second = x, 5 * x + 1
    z, _ = scaled.encode(first), scaled.encode(second)
    torch.testing.assert_close(scaled.decode(z, first), scaled.module(first))


def test_effects_of_latents_are_in_the_units_of_the_state(model):
    ours = Sae(build("standard", normalize_activations="layer_norm"))
    data = rows()
    latent = int(np.abs(latent_attribution(model, ours, data)).sum(0).argmax())
    whole = latent_attribution(model, ours, data)
    # The derivative of the log-probability by the activation, by a small step.
    small = 1e-3
    starts = list(data.answer_start)

    def logprob(scale):
        def step(value):
            out = value.clone()
            for row, start in enumerate(starts):
                z = ours.encode(value[row, start - 1])[latent]
                length = ours.output_scale(value[row, start - 1])
                out[row, start - 1] += scale * z * length * ours.decoder[latent]
            return out

        batch = pad(data)
        with torch.no_grad(), patch(model, {"resid.1": step}):
            logits = model(**batch.model_inputs).logits.double().log_softmax(-1)
        return np.array(
            [float(logits[row, s - 1, data.ids[row][s]]) for row, s in enumerate(starts)]
        )

    slope = (logprob(small) - logprob(-small)) / (2 * small)
    np.testing.assert_allclose(whole[:, latent], slope, atol=2e-3)
    amplifier = LatentAmplifier.fit(
        ours,
        np.array([latent]),
        np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32),
    )
    x = torch.randn(4, WIDTH)
    wanted = (ours.encode(x)[:, [latent]] - amplifier.center) * ours.decoder[latent]
    torch.testing.assert_close(amplifier.apply(x), wanted * ours.output_scale(x))


def test_negative_activations_are_active():
    ours = Sae(build("abstopk"))
    x = torch.randn(50, WIDTH)
    assert measure_quality(ours, iter([x])).l0 == 8
    z = ours.encode(x).numpy()
    mask = np.arange(50) < 25
    share = rank_latents(z, {"first": mask}).active[0]
    np.testing.assert_allclose(share, (z[mask] != 0).mean(0))


def test_a_transcoder_is_no_autoencoder_of_one_site(model):
    ours = Sae(build("transcoder"))
    assert repr(ours) == f"Sae(transcoder mlp_in.1 to mlp.1, {WIDTH} -> {LATENTS} -> {WIDTH})"
    with pytest.raises(InputError, match="its latents are not those of"):
        ablation_effect(model, ours, rows(), [1])
    with pytest.raises(InputError, match="only one was given"):
        measure_quality(ours, iter([torch.zeros(3, WIDTH)]))
    module = build("transcoder")
    module.cfg.metadata.hook_name_out = None
    with pytest.raises(InputError, match="site of this autoencoder is not known"):
        Sae(module)
    module.cfg.metadata.hook_name = "blocks.1.hook_mlp_out"
    with pytest.raises(InputError, match="reads one site and predicts another"):
        Sae(module, "mlp.1")
    assert Sae(module, "mlp.2").input_site == "mlp.1"
    opt = tiny("opt")
    if opt.config.hidden_size == WIDTH:
        with pytest.raises(InputError, match="MLP is no module of its own"):
            with spliced(opt, Sae(build("transcoder"))):
                pass


def test_the_input_before_the_gain_of_the_norm(model):
    module = build("transcoder")
    module.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
    ours = Sae(module)
    norm = model.model.layers[1].post_attention_layernorm
    before = norm.weight.detach().clone()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(WIDTH) + 0.5)
    try:
        batch = pad(rows())
        inputs = mlp_input(model, batch) / norm.weight.detach()
        with spliced(model, ours, keep_error=False):
            (seen,) = at(model, batch, "mlp.1")
        real = real_after_first(batch)
        torch.testing.assert_close(seen[real], module(inputs)[real], atol=1e-4, rtol=1e-4)
    finally:
        with torch.no_grad():
            norm.weight.copy_(before)


def left_padded(data):
    batch = pad(data)
    ids, mask = batch.input_ids.clone(), batch.attention_mask.clone()
    for row, length in enumerate(batch.attention_mask.sum(1).tolist()):
        ids[row] = ids[row].roll(ids.shape[1] - length)
        mask[row] = mask[row].roll(ids.shape[1] - length)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places}


def test_padding_on_the_left_does_not_move_the_first_token(model):
    ours, data = Sae(build("standard")), rows()
    batch, left = pad(data), left_padded(data)
    real, left_real = batch.attention_mask.bool(), left["attention_mask"].bool()
    assert not torch.equal(real, left_real)
    with torch.no_grad(), spliced(model, ours, keep_error=False):
        wanted = model(**batch.model_inputs).logits[real]
        found = model(**left).logits[left_real]
        positional = model(left["input_ids"], left["attention_mask"], left["position_ids"]).logits
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-3)
    assert torch.equal(positional[left_real], found)


def test_padding_is_seen_under_a_wrapper_that_calls_forward(model):
    ours, left = Sae(build("standard")), left_padded(rows())
    with torch.no_grad(), spliced(model, ours, keep_error=False):
        wanted = model(**left).logits
        found = model.forward(**left).logits  # no hook of the model itself is called
    real = left["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], atol=1e-4, rtol=1e-4)


def test_what_continues_a_cache_is_spliced_whole(model):
    ours = Sae(build("standard"))
    ids = torch.tensor([[5, 9, 4, 7, 3]])
    with torch.no_grad(), spliced(model, ours, keep_error=False):
        wanted = model(ids).logits
        for cut in (1, 3, 4):
            first = model(ids[:, :cut], use_cache=True)
            rest = model(ids[:, cut:], past_key_values=first.past_key_values, use_cache=True)
            found = torch.cat([first.logits, rest.logits], 1)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
        plain = model.generate(ids[:, :1], max_new_tokens=3, do_sample=False, pad_token_id=0)
    with torch.no_grad(), spliced(model, ours, keep_error=False):
        steps = ids[:, :1]
        for _ in range(3):
            steps = torch.cat([steps, model(steps).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(plain, steps)


def test_generation_of_padded_rows_is_that_of_each_row(model):
    ours, data = Sae(build("standard")), rows()
    left = left_padded(data)
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with torch.no_grad(), spliced(model, ours, keep_error=False):
        together = model.generate(
            left["input_ids"], attention_mask=left["attention_mask"], **settings
        )
        searched = model.generate(
            left["input_ids"], attention_mask=left["attention_mask"], num_beams=3, **settings
        )
        for row, ids in enumerate(data.ids):
            one = torch.tensor([ids])
            alone = model.generate(one, attention_mask=torch.ones_like(one), **settings)
            assert torch.equal(together[row, -4:], alone[0, -4:])
            beams = model.generate(
                one, attention_mask=torch.ones_like(one), num_beams=3, **settings
            )
            assert torch.equal(searched[row, -4:], beams[0, -4:])


def test_rows_that_share_a_prefix_and_stopped_passes_are_spliced_the_same(model):
    ours = Sae(build("standard"))
    rng = np.random.default_rng(0)
    prefix = tuple(rng.integers(3, VOCABULARY, 12).tolist())
    ids = tuple((*prefix, *rng.integers(3, VOCABULARY, size).tolist()) for size in (2, 5, 3, 4))
    data = Sequences(ids, tuple(len(row) for row in ids))
    with spliced(model, ours, keep_error=False):
        found = capture_activations(model, data, ["resid.1", "resid.2"], [0, 1, -1])
        left = capture_activations(model, data, ["resid.2"], [0, 1, -1], padding="left")
        for row, each in enumerate(ids):
            with torch.no_grad(), record(model, ["resid.1", "resid.2"]) as got:
                model(torch.tensor([each]))
            for site in ("resid.1", "resid.2"):
                wanted = got[site][0, [0, 1, -1]]
                np.testing.assert_allclose(found.site(site)[row], wanted, atol=1e-4)
            np.testing.assert_allclose(left.site("resid.2")[row], wanted, atol=1e-4)
    assert count_hooks(model) == 0


def test_loss_recovered_counts_real_tokens_only(model):
    ours = Sae(build("standard"))
    rng = np.random.default_rng(0)
    ids = tuple(tuple(rng.integers(3, VOCABULARY, size).tolist()) for size in (12, 3, 1, 2, 7, 1))
    data = Sequences(ids, tuple(len(row) for row in ids))
    found = loss_recovered(model, ours, data)
    alone = loss_recovered(model, ours, data, batch_tokens=1)
    for name in ("plain", "spliced", "ablated", "recovered"):
        assert getattr(found, name) == pytest.approx(getattr(alone, name), rel=1e-4), name
    assert found.skipped == 2
    states, losses = [], np.zeros(3)
    long = [torch.tensor([row]) for row in ids if len(row) > 1]
    with torch.no_grad():
        for row in long:
            with record(model, ["resid.1"]) as got:
                model(row)
            states.append(got["resid.1"][0, 1:])
        mean = torch.cat(states).mean(0)

        def flat(value):
            return torch.cat([value[:, :1], mean.expand_as(value[:, 1:])], 1)

        def rebuilt(value):
            return torch.cat([value[:, :1], ours.reconstruct(value[:, 1:])], 1)

        for number, edit in enumerate((None, rebuilt, flat)):
            for row in long:
                with patch(model, {} if edit is None else {"resid.1": edit}):
                    logits = model(row).logits[0, :-1]
                losses[number] += float(
                    nn.functional.cross_entropy(logits, row[0, 1:], reduction="sum")
                )
    losses /= sum(row.shape[1] - 1 for row in long)
    assert (found.plain, found.spliced, found.ablated) == pytest.approx(tuple(losses), rel=1e-4)
    with pytest.raises(InputError, match="no row has a next token"):
        loss_recovered(model, ours, Sequences(((5,), (6,)), (1, 1)))


def test_names_of_transformerlens():
    names = {
        "blocks.5.hook_resid_post": "resid.5",
        "blocks.5.hook_resid_pre": "resid.4",
        "blocks.0.hook_resid_pre": "embed",
        "blocks.5.hook_resid_mid": "resid_mid.5",
        "blocks.5.hook_mlp_out": "mlp.5",
        "blocks.5.hook_attn_out": "attn.5",
        "model.layers.20": "resid.20",
        "transformer.h.3": "resid.3",
        "ln_final.hook_normalized": "final",
        "resid.7": "resid.7",
        "head.3.1": "head.3.1",
    }
    assert {name: site_name(name) for name in names} == names
    assert site_of_hook("blocks.2.attn.hook_z", head=1) == "head.2.1"
    gemma = "model.layers.2.pre_feedforward_layernorm.output"
    assert site_of_hook("blocks.2.hook_mlp_in", module=gemma) == "mlp_in.2"
    with pytest.raises(InputError, match="outputs of all heads"):
        site_name("blocks.2.attn.hook_z")
    with pytest.raises(InputError, match="before the norm in HookedTransformer"):
        site_name("blocks.2.hook_mlp_in")
    for wrong in ("nonsense here", f"resid.{'9' * 5000}", f"blocks.{'9' * 5000}.hook_resid_pre"):
        with pytest.raises(InputError, match="there is no site"):
            site_name(wrong)
    with pytest.raises(InputError, match="is no text"):
        site_name(7)  # pyright: ignore


def test_the_site_is_that_of_the_metadata(tmp_path):
    build("standard").save_model(tmp_path)
    assert load_sae(tmp_path).site == "resid.1"
    assert load_sae(tmp_path, "blocks.2.hook_resid_pre").site == "resid.1"
    assert Sae(build("standard")).site == "resid.1"
    for wrong in ("resid.2", "blocks.1.hook_resid_pre", "mlp.1"):
        with pytest.raises(InputError, match="not the one that the autoencoder was trained on"):
            load_sae(tmp_path, wrong)
    settings = json.loads((tmp_path / "cfg.json").read_text())
    settings["metadata"]["hook_name"] = "blocks.1.attn.hook_z"
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="outputs of all heads"):
        load_sae(tmp_path)
    settings["metadata"].pop("hook_name")
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="site of this autoencoder is not known"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, "blocks.0.hook_mlp_out").site == "mlp.0"


def test_releases_of_sae_lens(tmp_path, monkeypatch):
    from sae_lens.loading import pretrained_saes_directory as directory

    with pytest.raises(InputError, match=r"such as gpt2-small-res-jb:blocks\.0\.hook_resid_pre"):
        load_sae("gpt2-small-res-jb")
    with pytest.raises(InputError, match="and none is"):
        load_sae("gpt2-small-res-jb:blocks.99.hook_resid_pre")
    with pytest.raises(InputError, match="'gemma_2', not as safetensors"):
        load_sae("gemma-scope-2b-pt-res-canonical:layer_20/width_16k/canonical")
    with pytest.raises(InputError, match="gpt2-small-res-jb"):
        load_sae("gpt2-small-res-jc:x")
    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError, match="is jbloom/GPT2-Small-SAEs-Reformatted:blocks"):
        load_sae("gpt2-small-res-jb:blocks.8.hook_resid_pre")
    # In another format of safetensors, read by sae-lens.
    scope = "gemma-scope-2-4b-pt-transcoders-all:layer_0_width_16k_l0_big"
    module = build("jumprelu_transcoder")
    module.cfg.metadata.hook_name = "blocks.1.hook_mlp_in"
    module.cfg.metadata.hf_hook_name = "model.layers.1.pre_feedforward_layernorm.output"
    monkeypatch.setattr("sae_lens.SAE.from_pretrained", lambda *_, **__: module)
    assert (load_sae(scope).input_site, load_sae(scope).site) == ("mlp_in.1", "mlp.1")
    with pytest.raises(InputError, match="Leave revision out"):
        load_sae(scope, revision="main")
    monkeypatch.setattr("sae_lens.SAE.from_pretrained", offline)
    with pytest.raises(InputError, match="is google/gemma-scope-2-4b-pt:transcoder_all"):
        load_sae(scope)
    # One with a factor that its weights do not include.
    known = directory.get_pretrained_saes_directory()
    release, sae_id = next(
        (name, each)
        for name, found in known.items()
        if found.conversion_func is None
        for each in found.norm_scaling_factor
    )
    folder = tmp_path / known[release].saes_map[sae_id]
    module = build("standard", normalize_activations="expected_average_only_in")
    module.save_model(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    ours = load_sae(f"{release}:{sae_id}")
    module.fold_activation_norm_scaling_factor(known[release].norm_scaling_factor[sae_id])
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(ours.encode(x), module.encode(x))


def offline(*_, **__):
    raise OSError("no network")


def test_kinds_that_are_no_map_of_one_state_are_refused():
    from types import SimpleNamespace

    for kind, extra, reason in (
        ("temporal", {}, "predicts each state from the states before it"),
        ("standard", {"reshape_activations": "hook_z"}, "all heads of a block side by side"),
    ):
        cfg = SimpleNamespace(architecture=lambda kind=kind: kind, **extra)
        with pytest.raises(InputError, match=reason):
            Sae(SimpleNamespace(cfg=cfg), "resid.1")


def test_names_and_arguments_of_before(model):
    import attribution.sae as package
    from attribution.sae import autoencoder

    with pytest.warns(DeprecationWarning):
        assert package.load_sae is load_sae
    with pytest.warns(DeprecationWarning):
        assert autoencoder.quality is measure_quality
    with pytest.warns(DeprecationWarning, match="the argument first moved to first_position"):
        with spliced(model, Sae(build("standard")), first=0):  # pyright: ignore
            model(torch.tensor([[5, 6]]))
    with pytest.warns(DeprecationWarning, match="the argument tokens"):
        loss_recovered(model, Sae(build("standard")), rows(), tokens=512)  # pyright: ignore
