"""Updates of known rank and direction, and where a model was edited."""

import copy

import pytest
import torch

from capture.activations.loss_gradients import loss_gradients
from capture.checkpoints.open import open_checkpoint
from capture.checkpoints.weight_change import (
    LossGradients,
    by_component,
    compare_weights,
    leading_directions,
    update_shapes,
)
from capture.data.sequences import Sequences
from evidence.errors import InputError
from tests.helpers.model_families import LAYERS, tiny


def shapes(model, change):
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    return update_shapes(open_checkpoint(model), open_checkpoint(other), n_leading=4)


def test_leading_directions_are_those_of_the_decomposition():
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 30))[0] for size in (70, 40))
    values = 0.8 ** torch.arange(30.0)
    matrix = left @ torch.diag(values) @ right.T
    u, v = leading_directions(matrix, 5)
    assert torch.allclose((u.T @ left[:, :5]).abs(), torch.eye(5), atol=1e-3)
    assert torch.allclose((v.T @ right[:, :5]).abs(), torch.eye(5), atol=1e-3)
    repeated = leading_directions(matrix, 5)
    assert torch.equal(u, repeated[0])
    assert torch.equal(v, repeated[1])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_an_outer_product_along_the_leading_directions(family):
    model = tiny(family)
    name = next(n for n, w in model.named_parameters() if ".1." in n and w.dim() == 2)
    transposed = family == "gpt2"

    def change(other):
        weight = other.get_parameter(name)
        matrix = weight.T if transposed else weight
        u, _, v = torch.linalg.svd(matrix.clone(), full_matrices=False)
        # Reads from the first right direction, writes into the last left one.
        matrix += 0.5 * torch.outer(u[:, -1], v[0])

    (row,) = shapes(model, change)
    assert row.name == name
    assert row.layer == 1
    assert row.component in name
    assert ".1." not in row.component
    assert row.norm == pytest.approx(0.5, rel=1e-4)
    assert row.stable_rank == pytest.approx(1.0, rel=1e-3)
    assert row.input_share == pytest.approx(1.0, abs=1e-3)
    assert row.output_share == pytest.approx(0.0, abs=1e-3)


def test_noise_has_a_high_rank_and_points_nowhere():
    model = tiny("llama")

    def change(other):
        torch.manual_seed(3)
        weight = other.get_parameter("model.layers.2.mlp.down_proj.weight")
        weight += 0.1 * torch.randn(weight.shape)

    (row,) = shapes(model, change)
    assert row.stable_rank > 5
    assert row.input_share == pytest.approx(row.input_chance, abs=0.1)
    assert row.output_share == pytest.approx(row.output_chance, abs=0.1)


def test_components_gather_the_blocks_and_agree_with_the_comparison():
    model = tiny("llama")

    def change(other):
        for block in other.model.layers:
            block.mlp.up_proj.weight += 0.3
        other.model.layers[0].self_attn.q_proj.weight *= 1.01

    rows = shapes(model, change)
    first, second = by_component(rows)
    assert first.component == "mlp.up_proj"
    assert first.layers == tuple(range(LAYERS))
    assert first.stable_rank == pytest.approx(1.0, rel=1e-3)
    assert second.relative == pytest.approx(0.01, rel=1e-2)
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
    moved = compare_weights(open_checkpoint(model), open_checkpoint(other))
    expected = {each.name: each.relative for each in moved.tensors if each.relative > 0}
    assert {row.name: row.relative for row in rows} == pytest.approx(expected, rel=1e-4)


def test_nothing_changed_is_no_row():
    model = tiny("gpt2")
    assert shapes(model, lambda other: None) == ()


ROWS = Sequences(((3, 9, 4, 7, 8), (5, 6, 11), (12, 4, 9, 2)), (3, 2, 2))


def mean_loss(model, rows):
    """Plainly, token by token."""
    total, count = torch.zeros(()), 0
    for ids, start in zip(rows.ids, rows.answer_start, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(start, len(ids)):
            total = total - logits[place - 1, ids[place]]
            count += 1
    return total / count


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_gradients_are_those_of_the_mean_loss(family):
    model = tiny(family).double()
    names = [name for name, p in model.named_parameters() if p.dim() == 2][2:5]
    frozen = dict(model.named_parameters())[names[0]]
    frozen.requires_grad_(False)
    found = loss_gradients(model, ROWS, [*names, "nowhere"])
    assert list(found) == names
    assert not frozen.requires_grad
    assert all(p.grad is None for p in model.parameters())
    frozen.requires_grad_(True)
    parameters = [dict(model.named_parameters())[name] for name in names]
    slopes = torch.autograd.grad(mean_loss(model, ROWS), parameters)
    for name, slope in zip(names, slopes, strict=True):
        assert torch.allclose(found[name], slope, atol=1e-6)
    with pytest.raises(InputError, match="needs answers"):
        loss_gradients(model, ROWS[[]], names)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_a_step_along_one_gradient_is_seen_to_be_one(family):
    model = tiny(family)
    name = next(n for n, w in model.named_parameters() if ".1." in n and w.dim() == 2)
    up, across = (loss_gradients(model, rows, [name])[name] for rows in (ROWS[[0]], ROWS[[2]]))
    across = across - (across * up).sum() / up.square().sum() * up
    stepped = copy.deepcopy(model)
    with torch.no_grad():
        stepped.get_parameter(name).add_(0.5 * up / up.norm())
    (row,) = update_shapes(
        open_checkpoint(model),
        open_checkpoint(stepped),
        gradients=LossGradients({name: up}, {name: across}),
    )
    assert row.forget_cosine == pytest.approx(1, abs=1e-3)
    assert row.retain_cosine == pytest.approx(0, abs=1e-3)
    # Two answer tokens give a gradient of rank two: nothing lies outside sixteen.
    assert row.forget_share == pytest.approx(1, abs=1e-2)
    assert row.input_chance <= 1
    (bare,) = update_shapes(open_checkpoint(model), open_checkpoint(stepped))
    assert bare.forget_cosine is None
    assert by_component([bare])[0].retain_share is None
