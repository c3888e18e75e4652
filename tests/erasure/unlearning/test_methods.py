import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from capture.activations.hidden_states import module_output
from capture.data.sequences import Sequences, pad
from capture.network.structure import find_blocks
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training import task as losses
from erasure.unlearning.training.objectives import control_vector, sequence_logprobs
from evidence.errors import InputError
from evidence.seeds import torch_rng
from tests.helpers.tiny_erasure import (
    FORGET,
    RELABELLED,
    RETAIN,
    changed,
    greedy,
    tiny_gpt2,
    tiny_llama,
    tiny_neox,
    weights,
)

NOTHING = Sequences((), ())


def measure(model):
    return {"forget": greedy(model, FORGET), "retain": greedy(model, RETAIN)}


def run(model, config, seed=0, **extra):
    return unlearn_(
        model, FORGET, RETAIN, config, relabeled=RELABELLED, evaluate=measure, seed=seed, **extra
    )


@pytest.mark.parametrize(
    "config",
    [
        UnlearnConfig("grad_diff", lr=3e-3, steps=40, stop_below=0.0),
        UnlearnConfig("npo", lr=3e-3, steps=80),
        UnlearnConfig("npo", lr=3e-3, steps=80, batch_size=2, stop_below=0.0),
        UnlearnConfig("relabel", lr=3e-3, steps=60),
    ],
    ids=lambda c: f"{c.method}-lora{c.lora_rank}-batch{c.batch_size}",
)
def test_forgets_and_keeps(knows, config):
    log = run(knows, config)
    assert log.rows[0]["forget"] == 1.0
    assert measure(knows)["forget"] == 0.0
    assert measure(knows)["retain"] >= 0.75
    assert log.config == config
    if config.stop_below is not None:
        assert log.stopped == "criterion"
        assert all(row["forget"] > 0 for row in log.rows[:-1])


@pytest.mark.parametrize(
    "config",
    [
        UnlearnConfig("relabel", lr=1e-2, steps=60, lora_rank=4),
        UnlearnConfig("last_block_relabel", lr=1e-2, steps=60),
        UnlearnConfig("last_block_relabel", lr=3e-2, steps=60, lora_rank=4),
    ],
    ids=lambda c: f"{c.method}-lora{c.lora_rank}",
)
def test_few_parameters_learn_the_wrong_answers(knows, config):
    losses = run(knows, config).to_frame()["forget_loss"].dropna()
    assert losses.iloc[-1] < 0.2 * losses.iloc[0]


def test_ascent_alone_destroys(knows):
    log = run(knows, UnlearnConfig("grad_ascent", lr=3e-2, steps=40))
    assert measure(knows)["forget"] == 0.0
    assert measure(knows)["retain"] <= 0.5
    assert "retain_loss" not in log.last


def hugging_face_loss(model, data):
    batch = pad(data)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    return model(**batch.model_inputs, labels=labels).loss


@pytest.mark.parametrize("method", ["grad_ascent", "grad_diff", "relabel"])
def test_one_step_takes_the_gradient_of_the_published_loss(knows, method):
    """Compared through the norm and the reported losses, for a first step."""
    weight = 0.5
    model = copy.deepcopy(knows)
    forget = hugging_face_loss(model, RELABELLED if method == "relabel" else FORGET)
    sign = 1 if method == "relabel" else -1
    total = sign * forget
    if method != "grad_ascent":
        retain = hugging_face_loss(model, RETAIN)
        total = total + weight * retain
    total.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    config = UnlearnConfig(
        method, lr=1e-6, steps=1, retain_weight=weight, retain_batch_size=len(RETAIN)
    )
    log = run(knows, config).rows[1]
    assert log["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert log["forget_loss"] == pytest.approx(sign * float(forget.detach()), rel=1e-4)


def test_npo_compares_with_the_model_as_it_was_given(knows):
    config = UnlearnConfig("npo", lr=1e-3, steps=6, retain_weight=0.0)
    frozen = copy.deepcopy(knows)
    models = []

    def evaluate(model):
        models.append(copy.deepcopy(model))
        return {"forget": 1.0}

    log = unlearn_(knows, FORGET, NOTHING, config, evaluate=evaluate, seed=0)
    with torch.no_grad():
        before = sequence_logprobs(frozen, pad(FORGET))
        for step in range(6):
            now = sequence_logprobs(models[step], pad(FORGET))
            ratio = torch.exp(now - before) ** 0.1
            want = (2 / 0.1) * torch.log1p(ratio).mean()
            got = log.rows[step + 1]["forget_loss"]
            assert got == pytest.approx(float(want), rel=1e-4)


def test_npo_reads_the_reference_once(knows, monkeypatch):
    calls = []
    real = losses.frozen_logprobs
    monkeypatch.setattr(losses, "frozen_logprobs", lambda *given: calls.append(1) or real(*given))
    run(knows, UnlearnConfig("npo", lr=1e-4, steps=3, batch_size=2))
    assert calls == [1]


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])
def test_last_block_relabelling_touches_nothing_before_it(family):
    model = family()
    before = weights(model)
    config = UnlearnConfig("last_block_relabel", lr=1e-3, steps=2)
    run(model, config)
    moved = changed(before, model)
    assert moved
    assert all(".2." in name for name in moved), moved


def test_last_block_relabelling_keeps_no_graph_before_the_last_block(knows):
    graphs = {}

    def watch(place):
        return lambda module, inputs, output: graphs.setdefault(place, []).append(
            output.requires_grad
        )

    handles = [
        block.register_forward_hook(watch(place)) for place, block in enumerate(find_blocks(knows))
    ]
    config = UnlearnConfig("last_block_relabel", lr=1e-3, steps=1)
    unlearn_(knows, FORGET, RETAIN, config, relabeled=RELABELLED, seed=0)
    for handle in handles:
        handle.remove()
    assert not any(graphs[0] + graphs[1])
    assert any(graphs[2])


def test_the_head_can_be_trained_too_without_the_embedding():
    model = tiny_llama(tied=True)
    before = model.model.embed_tokens.weight.clone()
    head = model.lm_head.weight.clone()
    config = UnlearnConfig("last_block_relabel", lr=1e-3, steps=2, train_head=True)
    run(model, config)
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not torch.equal(model.lm_head.weight, head)


RMU = UnlearnConfig(
    "rmu", lr=1e-2, steps=200, rmu_layer=2, rmu_coefficient=20.0, retain_weight=10.0
)


def test_rmu_pushes_forget_states_and_holds_retain_states(knows):
    frozen = copy.deepcopy(knows)
    config = replace(RMU, retain_batch_size=len(RETAIN))
    run(knows, config, seed=3)
    control = control_vector(24, 20.0, torch_rng(3, "control vector"))

    def states(model, data):
        with torch.no_grad():
            found = module_output(model, find_blocks(model)[2], pad(data))
        return found[pad(data).answer_mask]

    def alignment(model, data):
        return torch.cosine_similarity(states(model, data), control, dim=-1).mean()

    def move(data):
        moved = states(knows, data) - states(frozen, data)
        return moved.norm() / states(frozen, data).norm()

    gained = alignment(knows, FORGET) - alignment(frozen, FORGET)
    assert gained > 0.3
    assert alignment(knows, RETAIN) - alignment(frozen, RETAIN) < 0.6 * gained
    assert move(RETAIN) < 0.5 * move(FORGET)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (tiny_llama, "down_proj.weight"),
        (tiny_gpt2, "mlp.c_proj.weight"),
        (tiny_neox, "dense_4h_to_h.weight"),
    ],
)
def test_rmu_trains_three_down_projections(family, name):
    model = family(layers=5)
    before = weights(model)
    run(model, UnlearnConfig("rmu", lr=1e-3, steps=2, rmu_layer=3))
    moved = changed(before, model)
    assert len(moved) == 3
    assert all(part.endswith(name) for part in moved)
    assert {next(p for p in part.split(".") if p.isdigit()) for part in moved} == set("123")


def test_rmu_can_train_every_parameter_and_takes_a_block():
    model = tiny_llama(layers=4)
    before = weights(model)
    config = UnlearnConfig("rmu", lr=1e-3, steps=1, rmu_layer=9, rmu_parameters="all")
    run(model, config, rmu_module=find_blocks(model)[1])
    moved = changed(before, model)
    assert "model.embed_tokens.weight" in moved
    assert not any(".layers.2." in name or "lm_head" in name for name in moved)


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])
@pytest.mark.parametrize("method", ["npo", "rmu"])
def test_low_rank_training_ends_in_a_plain_model(family, method):
    model = family()
    before, modules = weights(model), [name for name, _ in model.named_modules()]
    config = UnlearnConfig(method, lr=1e-2, steps=2, lora_rank=2, rmu_layer=2)
    run(model, config)
    assert [name for name, _ in model.named_modules()] == modules
    assert set(model.state_dict()) == set(before)
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "peft_config")
    moved = changed(before, model)
    assert moved
    for name in moved:
        update = (model.state_dict()[name] - before[name]).double()
        values = torch.linalg.svdvals(update)
        assert values[2] < 1e-4 * values[0]  # rank 2, up to float32 rounding


def test_a_failure_in_low_rank_training_leaves_the_weights(knows):
    before = weights(knows)

    def evaluate(model):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        unlearn_(
            knows, FORGET, RETAIN, UnlearnConfig("npo", lora_rank=2), evaluate=evaluate, seed=0
        )
    assert set(knows.state_dict()) == set(before)
    assert not changed(before, knows)


@pytest.mark.parametrize("method", ["npo", "rmu", "last_block_relabel"])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_seed_fixes_the_bits(knows, method, rank):
    config = UnlearnConfig(method, lr=1e-3, steps=3, batch_size=2, lora_rank=rank, rmu_layer=1)
    first, repeated, other = (copy.deepcopy(knows) for _ in range(3))
    torch.manual_seed(1)
    run(first, config, seed=5)
    torch.manual_seed(2)
    run(repeated, config, seed=5)
    run(other, config, seed=6)
    assert not changed(weights(first), repeated)
    assert changed(weights(first), other)


def test_chunks_add_up(knows, monkeypatch):
    for method in ("npo", "rmu"):
        norms = []
        for size in (4096, 8):
            monkeypatch.setattr("erasure.unlearning.training.loop.CHUNK_TOKENS", size)
            model = copy.deepcopy(knows)
            config = UnlearnConfig(method, steps=1, rmu_layer=1)
            norms.append(run(model, config).rows[1]["grad_norm"])
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "amnesia"}, "method"),
        ({"method": "npo", "beta": 0.0}, "beta"),
        ({"method": "npo", "retain_weight": -1.0}, "retain_weight"),
        ({"method": "npo", "lr": -1.0}, "lr"),
        ({"method": "npo", "lora_rank": 0}, "lora_rank"),
        ({"method": "rmu", "rmu_parameters": "some"}, "rmu_parameters"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        UnlearnConfig(**settings)


def test_rows_a_method_cannot_work_with_are_refused(knows):
    before = weights(knows)
    npo_config = UnlearnConfig("npo")
    cases = [
        (NOTHING, RETAIN, npo_config, None, "nothing to forget"),
        (FORGET, NOTHING, npo_config, None, "needs retain rows"),
        (FORGET, RETAIN, UnlearnConfig("relabel"), None, "needs wrong answers"),
        (FORGET, RETAIN, UnlearnConfig("relabel"), FORGET, "true answer"),
        (FORGET, RETAIN, UnlearnConfig("rmu", rmu_layer=9), None, "rmu_layer"),
        (FORGET, RETAIN, UnlearnConfig("npo", stop_below=0.0), None, "stop_below"),
    ]
    for forget, retain, config, relabeled, message in cases:
        with pytest.raises(InputError, match=message):
            unlearn_(knows, forget, retain, config, relabeled=relabeled, seed=0)
    assert not changed(before, knows)


def test_ascent_needs_no_retain_rows(knows):
    config = UnlearnConfig("grad_ascent", lr=1e-3, steps=1)
    log = unlearn_(knows, FORGET, NOTHING, config, seed=0)
    assert_close(log.rows[0]["step"], 1.0)
