"""Few weights move, each beyond its bin, and to first order not against what stays."""

import pytest
import torch

from capture.data.sequences import Sequences
from erasure.unlearning.training.loop import mean_nll
from erasure.weights.mansu import MansuConfig, _gradient_span, mansu_
from erasure.weights.quantization import linear_weights, quantize, quantize_
from evidence.errors import InputError
from tests.helpers.tiny_erasure import VOCABULARY, tiny_gpt2, tiny_llama, tiny_neox


def rows(count, seed, length=7):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (count, length), generator=generator)
    return Sequences(tuple(map(tuple, ids.tolist())), (length - 2,) * count)


FORGET, RETAIN = rows(6, 0), rows(24, 1)


def all_of(model):
    return {
        name: torch.ones_like(weight, dtype=torch.bool)
        for name, (weight, _) in linear_weights(model).items()
    }


def unlearned(model, masks=None, evaluate=None, **settings):
    settings = {"share": 0.02, "steps": 12, "directions": 4, "batch_size": 8} | settings
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    log = mansu_(
        model,
        FORGET,
        RETAIN,
        all_of(model) if masks is None else masks,
        MansuConfig(**settings),
        evaluate=evaluate,
        seed=0,
    )
    return before, log


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_neox])
def test_few_weights_move_and_each_by_more_than_its_bin(make):
    model = make()
    linear = linear_weights(model)
    loss = mean_nll(model, FORGET, "answer")
    before, log = unlearned(model)
    moved = 0
    for name, parameter in model.named_parameters():
        edit = (parameter - before[name]).detach()
        if name not in linear:
            assert not edit.any()
            continue
        transposed = linear[name][1]
        start, edit = (x.T if transposed else x for x in (before[name], edit))
        grid = quantize(start)
        changed = edit != 0
        assert (edit.abs()[changed] > 1.04 * grid.bin_widths[changed]).all()
        moved += int(changed.sum())
    assert 0 < moved == log.n_moved <= log.n_selected == round(0.02 * log.n_parameters)
    assert log.same_codes < 0.1
    assert mean_nll(model, FORGET, "answer") > loss + 0.02
    # Rounded to four bits the edit is still there.
    quantize_(model)
    assert mean_nll(model, FORGET, "answer") > loss + 0.02


def test_only_the_circuits_weights_move():
    model = tiny_llama()
    masks = {name: torch.zeros_like(mask) for name, mask in all_of(model).items()}
    inside = "model.layers.1.mlp.down_proj.weight"
    masks[inside][:5] = True
    before, log = unlearned(model, masks, share=1.0)
    assert log.n_selected == masks[inside].sum()
    for name, parameter in model.named_parameters():
        edit = parameter != before[name]
        if name == inside:
            assert edit[:5].any()
            assert not edit[5:].any()
        else:
            assert not edit.any()


def test_the_span_is_that_of_the_gradients():
    generator = torch.Generator().manual_seed(0)
    gradients = list(torch.randn(3, 50, generator=generator))
    span = _gradient_span([*gradients, gradients[0] + gradients[1]])
    assert len(span) == 3
    assert torch.allclose(span @ span.T, torch.eye(3), atol=1e-5)
    for gradient in gradients:
        assert torch.allclose(span.T @ (span @ gradient), gradient, atol=1e-5)


def test_off_the_retain_gradients_the_retain_loss_rises_less():
    """Rows to keep that differ in one token suffer with those that go, or do not."""
    ids = [((row[0] + 1) % VOCABULARY, *row[1:]) for row in FORGET.ids]
    alike = Sequences(tuple(ids), FORGET.answer_start)
    rises = []
    for directions in (0, 1):
        model = tiny_llama()
        start = mean_nll(model, alike, "answer")
        mansu_(
            model,
            FORGET,
            alike,
            all_of(model),
            MansuConfig(
                share=0.05,
                steps=1,
                step=0.8,
                directions=directions,
                batch_size=len(alike),
                retain_weight=0.0,
            ),
            seed=0,
        )
        rises.append(mean_nll(model, alike, "answer") - start)
    assert rises[0] > 0.01
    assert rises[1] < rises[0] / 2


def test_it_stops_where_it_is_told_to():
    model = tiny_llama()
    seen = []

    def evaluate(now):
        seen.append(now)
        return {"forget": 0.0}

    _, log = unlearned(model, evaluate=evaluate, stop_below=0.5, every=2)
    assert log.stopped == "criterion"
    assert len(log.rows) == 2
    assert len(seen) == 1
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    "settings", [{"floor": 1.0}, {"share": 0}, {"steps": 0}, {"directions": -1}, {"cap": 0.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InputError, match="out of range"):
        MansuConfig(**settings)


def test_masks_that_do_not_fit_are_refused():
    model = tiny_llama()
    good = all_of(model)
    name = next(iter(good))
    for masks in (
        {name: good[name][:1]},
        {name: good[name].float()},
        {"nowhere": good[name]},
        {name: torch.zeros_like(good[name])},
        {},
    ):
        with pytest.raises(InputError, match="do not fit the model"):
            unlearned(model, masks)
    with pytest.raises(InputError, match="no retain rows"):
        mansu_(model, FORGET, FORGET[[]], good, MansuConfig(), seed=0)
