"""Steps off the retain gradients' span, and one step on one layer."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from erasure.unlearning.training.loop import backward_nll, mean_nll, only_training
from erasure.weights.gradient_projection import (
    GradientProjectionConfig,
    orthonormal_span,
    project_out,
    projected_ascent_,
)
from erasure.weights.slug import LayerScore, pareto_front, slug_
from evidence.errors import InputError
from tests.helpers.tiny_erasure import (
    FORGET,
    RETAIN,
    changed,
    greedy,
    tiny_gpt2,
    tiny_neox,
    weights,
)

EMPTY = FORGET[[]]


def loss(model, rows):
    return mean_nll(model, rows, "answer")


def grad_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def gradient(model, rows):
    with only_training(model, model.parameters()) as parameters:
        backward_nll(model, rows, "answer", 1.0)
        return torch.cat([grad_of(p).flatten() for p in parameters])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 6), tied=st.booleans())
def test_what_is_left_is_the_residual_of_least_squares(seed, count, tied):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 12)) * 10.0 ** rng.integers(-6, 6, (count, 1))
    if tied and count > 1:
        rows[-1] = 3 * rows[0]
    wanted = rng.standard_normal(12)
    span = orthonormal_span(torch.from_numpy(rows), 1e-6)
    assert len(span) == count - (tied and count > 1)
    assert_close(span @ span.T, torch.eye(len(span), dtype=torch.float64))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    fit = np.linalg.lstsq(unit.T, wanted, rcond=1e-9)[0]
    assert_close(project_out(torch.from_numpy(wanted), span).numpy(), wanted - unit.T @ fit)


def test_no_gradients_and_zero_gradients_span_nothing():
    zero = torch.zeros(5)
    assert orthonormal_span([zero, zero], 1e-6).shape == (0, 5)
    assert_close(project_out(torch.ones(5), orthonormal_span([zero], 1e-6)), torch.ones(5))


def plain_ascent_(model, rows, length):
    """One step of that length along the gradient."""
    slope = gradient(model, rows)
    parts = slope.split([p.numel() for p in model.parameters()])
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), parts, strict=True):
            parameter += length / slope.norm() * part.view_as(parameter)


def test_a_step_leaves_the_retain_loss_alone_to_first_order(knows):
    """A tenth of the step causes a hundredth of the rise; in plain ascent a tenth."""
    knows.double()
    start, forgot = loss(knows, RETAIN), loss(knows, FORGET)
    rises, gains, plain = [], [], []
    for length in (0.3, 0.03):
        model = copy.deepcopy(knows)
        config = GradientProjectionConfig(step_norm=length, steps=1, max_retain_rise=math.inf)
        projected_ascent_(model, FORGET, RETAIN, config, seed=0)
        rises.append(loss(model, RETAIN) - start)
        gains.append(loss(model, FORGET) - forgot)
        other = copy.deepcopy(knows)
        plain_ascent_(other, FORGET, length)
        plain.append(loss(other, RETAIN) - start)
    assert gains[0] > gains[1] > 0
    assert rises[0] > 50 * abs(rises[1])
    assert 0 < plain[0] < 50 * plain[1]


def test_it_forgets_and_keeps_where_plain_ascent_loses_both(knows):
    other = copy.deepcopy(knows)
    assert greedy(knows, FORGET) == greedy(knows, RETAIN) == 1
    config = GradientProjectionConfig(step_norm=0.3, steps=40, max_retain_rise=1e-3)
    log = projected_ascent_(knows, FORGET, RETAIN, config, seed=0)
    assert greedy(knows, FORGET) <= 0.25
    assert greedy(knows, RETAIN) == 1
    rows = log.to_frame()
    assert (rows["rise"].to_numpy() <= 1e-3).all()
    assert rows["kept"].between(0, 1).all()
    while greedy(other, FORGET) > 0.25:
        plain_ascent_(other, FORGET, 0.3)
    assert greedy(other, RETAIN) <= 0.5
    assert loss(other, RETAIN) > 10 * loss(knows, RETAIN)


def test_with_no_budget_and_a_huge_step_nothing_moves(knows):
    before = weights(knows)
    config = GradientProjectionConfig(step_norm=1e3, steps=2, max_retain_rise=0.0, max_halvings=1)
    log = projected_ascent_(knows, FORGET, RETAIN, config, seed=0)
    assert [row["scale"] for row in log.rows] == [0.0, 0.0]
    assert changed(before, knows) == set()


def test_the_same_seed_gives_the_same_weights(taught):
    config = GradientProjectionConfig(steps=3, batch_size=2, retain_batch_size=3)
    states = []
    for seed in (0, 0, 1):
        model = copy.deepcopy(taught)
        projected_ascent_(model, FORGET, RETAIN, config, seed=seed)
        states.append(weights(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_fronts_hold_what_nothing_beats():
    a, b, c = LayerScore("a", 3, 0.5), LayerScore("b", 2, 0.1), LayerScore("c", 1, 0.3)
    twin = LayerScore("twin", 3, 0.5)
    assert pareto_front([c, b, a, twin]) == [a, twin, b]
    assert pareto_front([c]) == [c]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_everything_off_the_front_is_beaten_by_something_on_it(pairs):
    scores = [LayerScore(str(i), a, b) for i, (a, b) in enumerate(pairs)]
    front = pareto_front(scores)

    def beats(one, other):
        weakly = one.importance >= other.importance and one.alignment <= other.alignment
        return weakly and (one.importance, one.alignment) != (other.importance, other.alignment)

    assert not any(beats(one, other) for one in scores for other in front)
    for each in scores:
        assert each in front or any(beats(one, each) for one in front)


def test_one_matrix_is_moved_just_to_the_goal(knows):
    before, goal = weights(knows), math.log(4)
    slope = gradient(knows, FORGET)
    edit = slug_(knows, FORGET, RETAIN, target_loss=goal)
    assert changed(before, knows) == {edit.layer}
    moved = knows.state_dict()[edit.layer] - before[edit.layer]
    names = [name for name, _ in knows.named_parameters()]
    parts = slope.split([before[name].numel() for name in names])
    own = dict(zip(names, parts, strict=True))[edit.layer].view_as(moved)
    assert_close(moved, edit.step * own, rtol=1e-4, atol=1e-6)
    assert goal <= edit.forget_loss < goal + 0.05
    assert edit.forget_loss == pytest.approx(loss(knows, FORGET), rel=1e-5)
    assert edit.retain_loss == pytest.approx(loss(knows, RETAIN), rel=1e-5)
    assert edit.retain_loss == min(edit.retain_losses.values())
    assert set(edit.retain_losses) <= {each.name for each in edit.pareto_front}


@pytest.mark.parametrize("family", [tiny_gpt2, tiny_neox])
def test_other_families_have_layers_too(family):
    model = family()
    before, start = weights(model), loss(model, FORGET)
    edit = slug_(model, FORGET, RETAIN, target_loss=start + 0.05)
    assert changed(before, model) == {edit.layer}
    assert loss(model, FORGET) >= start + 0.049


def test_goals_out_of_reach_and_reached_leave_the_model_as_it_was(knows):
    before = weights(knows)
    flags = [p.requires_grad for p in knows.parameters()]
    with pytest.raises(InputError, match="no single layer"):
        slug_(knows, FORGET, RETAIN, target_loss=1e9, max_doublings=2)
    for goal in (0.0, math.nan):
        with pytest.raises(InputError, match="reached the target already"):
            slug_(knows, FORGET, RETAIN, target_loss=goal)
    assert changed(before, knows) == set()
    assert [p.requires_grad for p in knows.parameters()] == flags


def test_rows_and_settings_that_cannot_be_used_are_refused(knows):
    for forget, retain, words in (
        (EMPTY, RETAIN, "no forget rows"),
        (FORGET, EMPTY, "no retain rows"),
    ):
        with pytest.raises(InputError, match=words):
            projected_ascent_(knows, forget, retain, GradientProjectionConfig(), seed=0)
        with pytest.raises(InputError, match=words):
            slug_(knows, forget, retain, target_loss=5.0)
    for bad in ({"step_norm": 0.0}, {"steps": 0}, {"history": 0}, {"max_retain_rise": -1.0}):
        with pytest.raises(InputError, match="out of range"):
            replace(GradientProjectionConfig(), **bad)
