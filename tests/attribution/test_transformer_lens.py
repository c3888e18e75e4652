"""Lens, attribution and transcoders on a HookedTransformer, against TransformerLens itself."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from attribution.logit_attribution import logit_attribution
from attribution.logit_lens import logit_lens
from attribution.sae.autoencoder import Sae
from attribution.sae.splicing import spliced
from capture.checkpoints.live import unwrap
from capture.data.sequences import Sequences

pytestmark = [
    pytest.mark.skipif(find_spec("sae_lens") is None, reason="sae-lens not installed"),
    # What the libraries and what they import say while they load is not ours to mend.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
WIDTH, LAYERS, VOCABULARY, LENGTH = 24, 3, 61, 7


def hooked(norm):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        n_ctx=32,
        d_head=6,
        n_heads=4,
        d_vocab=VOCABULARY,
        act_fn="gelu",
        normalization_type=norm,
        seed=0,
    )
    model = HookedTransformer(config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["LNPre", "RMSPre"])
def folded(request):
    return hooked(request.param)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    ids = tuple(tuple(rng.integers(3, VOCABULARY, LENGTH + 1).tolist()) for _ in range(5))
    return Sequences(ids, (LENGTH,) * 5)


def test_the_lens_is_that_of_accumulated_resid(folded, data):
    ids = torch.tensor(data.ids)[:, :LENGTH]
    _, cache = folded.run_with_cache(ids)
    stack = cache.accumulated_resid(layer=-1, pos_slice=-1)
    wanted = torch.stack([folded.unembed(folded.ln_final(state[:, None])) for state in stack])
    lens = logit_lens(unwrap(folded).module, data, keep_logits=True)
    assert lens.logits is not None
    np.testing.assert_allclose(lens.logits, wanted[:, :, 0], atol=1e-4)


def test_contributions_are_logit_attrs(folded, data):
    ids, tokens = torch.tensor(data.ids)[:, :LENGTH], torch.tensor(data.ids)[:, LENGTH]
    others = torch.full_like(tokens, 5)
    _, cache = folded.run_with_cache(ids)
    stack, labels = cache.decompose_resid(layer=-1, pos_slice=-1, return_labels=True)
    wanted = cache.logit_attrs(stack, tokens, others, pos_slice=-1)
    ours = logit_attribution(unwrap(folded).module, data, against=5)
    table = dict(zip(labels, wanted, strict=True))
    embed = table["embed"] + table["pos_embed"]
    np.testing.assert_allclose(ours.values[:, 0], embed, atol=1e-4)
    for layer in range(LAYERS):
        for kind in ("attn", "mlp"):
            column = ours.values[:, ours.components.index(f"{kind}.{layer}")]
            np.testing.assert_allclose(column, table[f"{layer}_{kind}_out"], atol=1e-4)
    stack, labels = cache.stack_head_results(layer=-1, pos_slice=-1, return_labels=True)
    wanted = cache.logit_attrs(stack, tokens, others, pos_slice=-1)
    heads = logit_attribution(unwrap(folded).module, data, against=5, heads=True)
    for label, values in zip(labels, wanted, strict=True):
        layer, head = label[1:].split("H")
        column = heads.values[:, heads.components.index(f"head.{layer}.{head}")]
        np.testing.assert_allclose(column, values, atol=1e-4)
    assert np.abs(heads.error).max() < 1e-4


@pytest.mark.parametrize("norm", ["LN", "RMS", "LNPre"])
@pytest.mark.parametrize("hook", ["ln2.hook_normalized", "mlp.hook_in"])
def test_a_transcoder_predicts_what_sae_lens_predicts(data, norm, hook):
    from sae_lens import Transcoder, TranscoderConfig

    model = hooked(norm)
    module = Transcoder(
        TranscoderConfig(d_in=WIDTH, d_out=WIDTH, d_sae=40, apply_b_dec_to_input=False)
    )
    module.cfg.metadata.hook_name = f"blocks.1.{hook}"
    module.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    ids, read = torch.tensor(data.ids), {}
    block = model.blocks[1]
    block.mlp.register_forward_pre_hook(lambda m, args: read.update({"mlp.hook_in": args[0]}))

    def note(value, hook):
        read["ln2.hook_normalized"] = value

    def predict(value, hook):
        return torch.cat([value[:, :1], module(read[point])[:, 1:]], 1)

    point = hook
    with torch.no_grad():
        wanted = model.run_with_hooks(
            ids,
            fwd_hooks=[("blocks.1.ln2.hook_normalized", note), ("blocks.1.hook_mlp_out", predict)],
        )
        plain = unwrap(model).module
        with spliced(plain, Sae(module.eval()), keep_error=False):
            found = plain(ids).logits
    torch.testing.assert_close(found, wanted)
