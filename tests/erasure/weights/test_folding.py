"""Erasers as hooks on live models, and folded into weights."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from capture.network.hooks import count_hooks, patch, record
from capture.network.sites import find_sites
from erasure.concept.affine import AffineEraser
from erasure.concept.base import MomentEraser
from erasure.concept.leace import Leace
from erasure.concept.projections import MeanDifference
from erasure.weights.folding import fold_, stream_erasers
from evidence.arrays import RowsError
from evidence.errors import InputError
from testbeds.worlds.random_models import FAMILIES, random_model
from tests.helpers.model_families import Cnn, pixels

VOCABULARY, WIDTH, HEADS, LAYERS = 50, 16, 2, 2
IDS = torch.randint(VOCABULARY, (4, 9), generator=torch.Generator().manual_seed(5))
# Of logits of size one to ten, in float32.
AGREE = 1e-5
KINDS = ("embed", "attn.1", "mlp.0", "head.1.1", "final", "logits")
HAVE_BIAS = {"gpt2": {"attn.1", "mlp.0", "head.1.1"}, "neox": {"attn.1", "mlp.0", "head.1.1"}}


def model_of(family, tied=False):
    torch.manual_seed(0)
    model = random_model(
        family, vocabulary=VOCABULARY, width=WIDTH, layers=LAYERS, heads=HEADS, pad=0
    )
    # Fresh weights are so small that a block barely matters, and biases are zero.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            elif "bias" in name:
                parameter.normal_(0, 0.2)
    if tied:
        model.config.tie_word_embeddings = True
        model.lm_head.weight = model.get_input_embeddings().weight
    return model


def eraser_of(width, kind: type[MomentEraser] = Leace):
    rng = torch.Generator().manual_seed(width)
    labels = torch.arange(80) % 2
    rows = torch.randn(80, width, generator=rng, dtype=torch.float64) + 0.5
    rows[:, 1] += 2 * labels
    return kind().fit(rows, labels).eraser_


def width_of(name):
    return {"head": WIDTH // HEADS, "logits": VOCABULARY}.get(name.split(".")[0], WIDTH)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def hooked_logits(model, erasers):
    edits = {name: eraser.transform for name, eraser in erasers.items()}
    with patch(model, edits):
        found = logits(model)
    assert count_hooks(model) == 0
    return found


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(before, model):
    after = model.state_dict()
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_folded_is_hooked(family, name, linear):
    model = model_of(family)
    eraser = eraser_of(width_of(name))
    eraser = eraser.linear() if linear else eraser
    want = hooked_logits(model, {name: eraser})
    assert (want - logits(model)).abs().max() > 0.05
    before, where = state(model), find_sites(model)
    has_bias = name == "embed" or name in HAVE_BIAS.get(family, ())
    if not (linear or has_bias):
        with pytest.raises(InputError, match=r"no bias.*Fold eraser\.linear\(\)"):
            fold_(model, {name: eraser}, where)
        assert unchanged(before, model)
        return
    fold_(model, {name: eraser}, where)
    assert_close(logits(model), want, rtol=0, atol=AGREE)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Leace, MeanDifference])
@pytest.mark.parametrize("tied", [False, True])
def test_the_whole_stream_folds_and_is_erased_at_every_depth(family, kind, tied):
    model, eraser = model_of(family, tied), eraser_of(WIDTH, kind)
    where = find_sites(model)
    erasers = stream_erasers(where.names, eraser)
    assert len(erasers) == 1 + 2 * LAYERS
    want = hooked_logits(model, erasers)
    assert (want - logits(model)).abs().max() > 0.05
    fold_(model, erasers, where)
    assert_close(logits(model), want, rtol=0, atol=AGREE)
    sites = ["embed", *where.of("resid")]
    with record(model, sites) as seen:
        logits(model)
    for name in sites:
        assert_close(seen[name], eraser.transform(seen[name]), rtol=0, atol=AGREE)
    # A shared output layer was given its own weights, as they were.
    assert not model.config.tie_word_embeddings
    head = model.get_output_embeddings()
    assert head is not None
    assert head.weight is not model.get_input_embeddings().weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_saved_and_loaded_as_it_is(family, tmp_path):
    model = model_of(family, tied=family != "neox")
    fold_(model, stream_erasers(find_sites(model).names, eraser_of(WIDTH)), find_sites(model))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_input_and_output_of_one_map_fold_together(family):
    model = model_of(family)
    erasers = {
        "head.0.0": eraser_of(WIDTH // HEADS).linear(),
        "attn.0": eraser_of(WIDTH).linear(),
        "mlp.1": eraser_of(WIDTH, MeanDifference).linear(),
    }
    want = hooked_logits(model, erasers)
    fold_(model, erasers, find_sites(model))
    assert_close(logits(model), want, rtol=0, atol=AGREE)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_block_leaves_is_a_sum_and_is_refused(family):
    model = model_of(family)
    before = state(model)
    for name in ("resid.0", f"resid.{LAYERS - 1}"):
        with pytest.raises(InputError, match=r"is the sum of .*stream_erasers"):
            fold_(model, {name: eraser_of(WIDTH).linear()}, find_sites(model))
    assert unchanged(before, model)
    assert count_hooks(model) == 0


def test_one_that_cannot_be_folded_leaves_all_others_as_they_were():
    model = model_of("llama", tied=True)
    before = state(model)
    erasers = {"embed": eraser_of(WIDTH), "attn.0": eraser_of(WIDTH)}
    with pytest.raises(InputError, match=r"attn\.0 cannot be folded"):
        fold_(model, erasers, find_sites(model))
    assert unchanged(before, model)
    assert model.config.tie_word_embeddings
    assert model.lm_head.weight is model.get_input_embeddings().weight


class Normed(nn.Module):
    """A feed-forward part that norms what it adds, as some families do."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm = inner, nn.LayerNorm(WIDTH)

    def forward(self, x):
        return self.norm(self.inner(x))


def test_a_norm_after_the_map_is_found_out_and_nothing_is_changed():
    model = model_of("llama")
    layers = model.model.layers
    layers[0].mlp = Normed(layers[0].mlp)
    before, where = state(model), find_sites(model)
    with pytest.raises(InputError, match="folded model differs from the hooked one"):
        fold_(model, {"mlp.0": eraser_of(WIDTH).linear()}, where)
    assert unchanged(before, model)
    assert count_hooks(model) == 0


def test_an_embedding_that_is_scaled_is_found_out():
    model = model_of("llama")
    plain = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: 3 * plain(ids)
    before = state(model)
    with pytest.raises(InputError, match="folded model differs from the hooked one"):
        fold_(model, {"embed": eraser_of(WIDTH)}, find_sites(model))
    assert unchanged(before, model)
    # Its linear part does not mind a scale.
    erasers = {"embed": eraser_of(WIDTH).linear()}
    want = hooked_logits(model, erasers)
    fold_(model, erasers, find_sites(model))
    assert_close(logits(model), want, rtol=0, atol=3 * AGREE)


def test_shared_and_quantised_weights_are_refused():
    model = model_of("llama")
    layers = model.model.layers
    layers[1].self_attn.o_proj.weight = layers[0].self_attn.o_proj.weight
    erasers = {"attn.0": eraser_of(WIDTH).linear()}
    with pytest.raises(InputError, match="shared by 2 modules"):
        fold_(model, erasers, find_sites(model))
    model = model_of("llama")
    weight = model.model.layers[0].self_attn.o_proj.weight
    whole = nn.Parameter(weight.detach().to(torch.int8), requires_grad=False)
    projection = model.model.layers[0].self_attn.o_proj
    projection.weight = whole
    projection.forward = lambda x: x @ whole.float().T
    with pytest.raises(InputError, match="quantized weights"):
        fold_(model, erasers, find_sites(model))


def test_erasers_that_do_not_fit_are_refused():
    model = model_of("gpt2")
    where = find_sites(model)
    with pytest.raises(RowsError, match="do not fit the eraser"):
        fold_(model, {"attn.0": eraser_of(WIDTH + 1)}, where)
    many = torch.randn(3, 20, WIDTH, generator=torch.Generator().manual_seed(0))
    several = Leace().fit(many, torch.arange(20) % 2).eraser_
    with pytest.raises(InputError, match="several sites"):
        fold_(model, {"attn.0": several}, where)
    with pytest.raises(InputError, match=r"no site 'attn\.9'"):
        fold_(model, {"attn.9": eraser_of(WIDTH)}, where)
    with pytest.raises(InputError, match="no residual stream"):
        stream_erasers(["embed", "resid.0"], eraser_of(WIDTH))


class Listed(nn.Module):
    """Two maps in a list, which are no transformer blocks."""

    def __init__(self):
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(64, WIDTH), nn.Linear(WIDTH, 4)])

    def forward(self, pixels):
        return self.maps[1](torch.relu(self.maps[0](pixels.flatten(1))))


@pytest.mark.parametrize("kind", [Listed, Cnn])
def test_a_model_that_takes_no_tokens_needs_a_batch(kind):
    torch.manual_seed(0)
    model, batch = kind().eval(), {"pixels": pixels()}
    where = find_sites(model)
    width = where.resolve("final").module.in_features
    erasers = {"final": eraser_of(width)}
    with pytest.raises(InputError, match="Give inputs"):
        fold_(model, erasers, where)
    with patch(model, {"final": erasers["final"].transform}), torch.no_grad():
        want = model(**batch)
    fold_(model, erasers, where, batch)
    with torch.no_grad():
        assert_close(model(**batch), want, rtol=0, atol=AGREE)


def test_a_convolution_is_no_linear_map_of_features():
    model = Cnn().eval()
    eraser = eraser_of(8).linear()
    with pytest.raises(InputError, match="cannot be folded into Conv2d"):
        fold_(model, {"embed": eraser}, find_sites(model), {"pixels": pixels()})


@pytest.mark.parametrize("family", FAMILIES)
def test_an_eraser_of_several_sites_is_hooked_at_each(family):
    """Fitted on what a model holds at all depths, in place while the block lasts."""
    model = model_of(family)
    where = find_sites(model)
    names = list(where.of("resid"))
    ids = torch.randint(VOCABULARY, (40, 5), generator=torch.Generator().manual_seed(1))
    with record(model, names, lambda _, value: value[:, -1]) as seen, torch.no_grad():
        model(ids)
    labels = torch.arange(40) % 2
    eraser = Leace().fit(torch.stack([seen[name] for name in names]), labels).eraser_
    with patch(model, eraser.edits(names)):
        with record(model, names, lambda _, value: value[:, -1]) as after:
            with torch.no_grad():
                model(ids)
    assert count_hooks(model) == 0
    # The first site was fitted on what comes to it still; deeper ones were not.
    first = after[names[0]].double()
    gap = first[labels == 0].mean(0) - first[labels == 1].mean(0)
    assert gap.abs().max() < 1e-5
    plain = seen[names[0]].double()
    assert (plain[labels == 0].mean(0) - plain[labels == 1].mean(0)).abs().max() > 1e-2


def test_hooks_go_after_a_failure():
    model = model_of("neox")
    with pytest.raises(RowsError, match="do not fit"):
        hooked_logits(model, {"attn.0": eraser_of(3)})
    with pytest.raises(RowsError, match="do not fit"):
        fold_(model, {"attn.0": eraser_of(3)}, find_sites(model))
    assert count_hooks(model) == 0


def test_modes_are_left_as_they_were():
    model = model_of("gpt2").train()
    model.get_submodule("transformer.h.0").eval()
    before = [module.training for module in model.modules()]
    eraser = eraser_of(WIDTH).linear()
    fold_(model, {"attn.0": eraser}, find_sites(model))
    assert [module.training for module in model.modules()] == before


def test_half_precision_folds_to_its_own_rounding():
    model = model_of("llama").bfloat16()
    erasers = stream_erasers(find_sites(model).names, eraser_of(WIDTH))
    want = hooked_logits(copy.deepcopy(model), erasers).float()
    fold_(model, erasers, find_sites(model))
    assert_close(logits(model).float(), want, rtol=0, atol=0.1 * float(want.std()))


def test_an_eraser_of_no_rank_folds_to_the_same_weights():
    model = model_of("llama")
    before = state(model)
    nothing = AffineEraser(
        "none",
        torch.zeros(WIDTH, 0, dtype=torch.float64),
        torch.zeros(0, WIDTH, dtype=torch.float64),
        torch.ones(WIDTH, dtype=torch.float64),
        torch.tensor(0),
    )
    fold_(model, stream_erasers(find_sites(model).names, nothing), find_sites(model))
    assert unchanged(before, model)
