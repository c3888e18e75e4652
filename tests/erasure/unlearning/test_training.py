import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.data.sequences import Sequences
from erasure.unlearning.training import loop
from erasure.unlearning.training.loop import Schedule, finetune_, only_training, shuffled_batches
from evidence.errors import InputError
from evidence.seeds import numpy_rng
from tests.helpers.tiny_erasure import (
    ANSWERS,
    FORGET,
    RETAIN,
    changed,
    greedy,
    tiny_gpt2,
    tiny_llama,
    weights,
)


def test_finetuning_learns_the_rows_by_heart(knows):
    assert greedy(knows, FORGET + RETAIN) == 1.0


def test_the_log_follows_the_loss():
    log = finetune_(tiny_llama(), RETAIN, lr=1e-2, steps=20, seed=0)
    frame = log.to_frame()
    assert frame["step"].tolist() == list(range(1, 21))
    assert frame["loss"].iloc[-1] < frame["loss"].iloc[0]
    assert log.stopped == "steps"


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def run(seed):
        model = tiny_gpt2().train()  # dropout would break this
        finetune_(model, RETAIN, lr=1e-3, steps=5, batch_size=3, seed=seed)
        return model

    first, repeated, other = run(1), run(1), run(2)
    assert not changed(weights(first), repeated)
    assert changed(weights(first), other)


def test_chunks_add_up_to_the_whole_batch(monkeypatch):
    whole, chunked = tiny_llama(), tiny_llama()
    a = finetune_(whole, RETAIN, lr=1e-3, steps=1, clip=None, seed=0)
    monkeypatch.setattr(loop, "CHUNK_TOKENS", 8)
    b = finetune_(chunked, RETAIN, lr=1e-3, steps=1, clip=None, seed=0)
    assert a.rows[0]["loss"] == pytest.approx(b.rows[0]["loss"], rel=1e-5)
    assert a.rows[0]["grad_norm"] == pytest.approx(b.rows[0]["grad_norm"], rel=1e-4)


def test_passes_are_larger_off_the_cpu_where_the_model_is_small(monkeypatch):
    model = tiny_llama()
    assert loop.chunk_tokens(model) == loop.CHUNK_TOKENS
    there = torch.nn.Module.to(model, "meta")
    assert loop.chunk_tokens(there) == 8 * loop.CHUNK_TOKENS
    monkeypatch.setattr(loop, "SMALL_MODEL_PARAMETERS", 10)
    assert loop.chunk_tokens(there) == loop.CHUNK_TOKENS


def test_only_the_chosen_parameters_move():
    model = tiny_llama()
    before = weights(model)
    finetune_(model, RETAIN, lr=1e-2, steps=2, parameters=model.lm_head.parameters(), seed=0)
    assert changed(before, model) == {"lm_head.weight"}


def test_the_model_comes_back_as_it_was_found():
    model = tiny_llama().train()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.eval()
    finetune_(model, RETAIN, lr=1e-3, steps=1, seed=0)
    assert not model.lm_head.weight.requires_grad
    assert model.model.embed_tokens.weight.requires_grad
    assert model.training
    assert not model.model.norm.training
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_block_also_leaves_the_model_as_found():
    model = tiny_llama().train()
    with pytest.raises(RuntimeError, match="on purpose"):
        with only_training(model, model.lm_head.parameters()):
            assert not model.training
            assert not model.model.embed_tokens.weight.requires_grad
            raise RuntimeError("on purpose")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_evaluation_is_asked_at_start_every_few_steps_and_at_the_end():
    seen = []

    def evaluate(model):
        assert not torch.is_grad_enabled()
        seen.append(len(seen))
        return {"count": float(len(seen))}

    log = finetune_(tiny_llama(), RETAIN, lr=1e-3, steps=5, seed=0, evaluate=evaluate, every=2)
    frame = log.to_frame().set_index("step")
    assert frame["count"].dropna().index.tolist() == [0, 2, 4, 5]
    assert log.last["count"] == 4


def test_the_criterion_stops_the_training():
    log = finetune_(
        tiny_llama(),
        RETAIN,
        lr=1e-2,
        steps=200,
        seed=0,
        evaluate=lambda model: {"known": greedy(model, RETAIN)},
        stop=lambda seen: seen["known"] == 1.0,
    )
    assert log.stopped == "criterion"
    assert log.last["known"] == 1.0
    assert len(log.rows) < 200


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_lost():
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight[ANSWERS[0]] = math.nan
    before = weights(model)
    log = finetune_(model, RETAIN, lr=1e-3, steps=3, seed=0)
    assert log.stopped == "diverged"
    same = {name for name in before if name != "lm_head.weight"}
    assert not changed(before, model) & same


@given(st.integers(1, 12), st.one_of(st.none(), st.integers(1, 15)), st.integers(0, 9))
def test_every_row_comes_once_an_epoch(count, size, seed):
    order = shuffled_batches(count, size, numpy_rng(seed, "test"))
    width = count if size is None else min(size, count)
    drawn = [row for _ in range(count) for row in next(order)]
    assert len(drawn) == count * width
    for epoch in range(width):
        part = drawn[epoch * count : (epoch + 1) * count]
        assert sorted(part) == list(range(count))


def test_the_learning_rate_rises_then_falls():
    plan = Schedule(lr=1.0, steps=12, warmup=4, decay="cosine")
    factors = [plan.factor(step) for step in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[-1] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"steps": 0}, "steps"),
        ({"clip": 0.0}, "clip"),
        ({"decay": "linear"}, "decay"),
        ({"parameters": []}, "no parameters"),
        ({"every": 0}, "every"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    model = tiny_llama()
    before = weights(model)
    with pytest.raises(InputError, match=message):
        finetune_(model, RETAIN, **({"lr": 1e-3, "steps": 1, "seed": 0} | settings))
    assert not changed(before, model)


def test_no_rows_are_refused():
    with pytest.raises(InputError, match="no rows"):
        finetune_(tiny_llama(), Sequences((), ()), lr=1e-3, steps=1, seed=0)
