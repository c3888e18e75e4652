"""Lower blocks that compute each row once give what they always gave."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close
from transformers import GenerationConfig

from capture.data.sequences import Sequences, pad
from capture.network.structure import find_blocks
from erasure.unlearning.config import UnlearnConfig
from erasure.unlearning.methods import relabeling
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.frozen_prefix import cached_prefix
from tests.helpers.tiny_erasure import (
    FORGET,
    RELABELLED,
    RETAIN,
    gradient,
    tiny_gpt2,
    tiny_llama,
    tiny_neox,
)

FAMILIES = pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])


def counting(block):
    """A list with an entry for each time the block's own code runs."""
    runs, forward = [], block.forward

    def counted(*args, **kwargs):
        runs.append(1)
        return forward(*args, **kwargs)

    block.forward = counted
    return runs


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.model_inputs, use_cache=False).logits[batch.answer_mask]


def generated(model, ids):
    config = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    return model.generate(ids, generation_config=config)


@FAMILIES
def test_rows_that_come_again_do_not_run_the_lower_blocks(family):
    model, first, repeated = family(), pad(RETAIN), pad(RETAIN, [5, 0, 2])
    want = [logits(model, first), logits(model, repeated)]
    runs = counting(find_blocks(model)[0])
    with cached_prefix(model, pad(RETAIN, [1])):
        runs.clear()
        assert_close(logits(model, first), want[0])
        assert len(runs) == 1
        # Other company and another width of padding, but the same rows.
        assert_close(logits(model, repeated), want[1], rtol=1e-5, atol=1e-6)
        assert len(runs) == 1


@FAMILIES
def test_the_last_block_is_trained_alike(family, monkeypatch):
    """Several steps with evaluations: losses and weights of the plain way."""
    config = UnlearnConfig(
        "last_block_relabel", lr=1e-2, steps=6, batch_size=3, retain_batch_size=3
    )
    found = []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(relabeling, "cached_prefix", lambda *_: nullcontext())
        model = family()
        log = unlearn_(
            model,
            FORGET,
            RETAIN,
            config,
            relabeled=RELABELLED,
            evaluate=lambda now: {"asked": float(logits(now, pad(FORGET)).sum())},
            seed=0,
        )
        found.append((log.to_frame(), model.state_dict()))
    rows = [torch.tensor(log.fillna(0).to_numpy()) for log, _ in found]
    assert_close(*rows, rtol=1e-4, atol=1e-5)
    assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


@FAMILIES
def test_gradients_reach_the_last_block(family):
    model, batch = family(), pad(RETAIN)
    last = find_blocks(model)[-1]
    model.requires_grad_(False)
    last.requires_grad_(True)
    grads = []
    with cached_prefix(model, pad(RETAIN, [1])):
        for _ in range(2):
            found = model(**batch.model_inputs, use_cache=False).logits
            found[batch.answer_mask].square().sum().backward()
            grads.append([gradient(p).clone() for p in last.parameters()])
            model.zero_grad()
    assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
    assert all(bool(grad.any()) for grad in grads[1][:1])


def test_a_hook_on_a_lower_block_sees_what_it_always_saw():
    model, batch = tiny_llama(), pad(RETAIN)
    seen = []

    def keep(_module, _inputs, output):
        seen.append(output if isinstance(output, torch.Tensor) else output[0])

    block = find_blocks(model)[0]
    with cached_prefix(model, pad(RETAIN, [1])):
        logits(model, batch)
        handle = block.get_submodule("mlp").register_forward_hook(keep)
        logits(model, batch)
        handle.remove()
    assert len(seen) == 1 and bool(seen[0].any())


def test_generation_and_other_positions_run_as_ever():
    model = tiny_llama()
    batch = pad(RETAIN)
    ids = batch.input_ids[:, :3]
    inputs = batch.model_inputs
    moved = inputs | {"position_ids": inputs["position_ids"] + 2}
    left = inputs | {"attention_mask": inputs["attention_mask"].flip(1)}
    plain = [generated(model, ids)]
    with torch.no_grad():
        plain += [model(**each, use_cache=False).logits for each in (moved, left)]
        with cached_prefix(model, pad(RETAIN, [1])):
            logits(model, batch)
            assert torch.equal(generated(model, ids), plain[0])
            for each, want in zip((moved, left), plain[1:], strict=True):
                real = each["attention_mask"].bool()
                found = model(**each, use_cache=False).logits
                assert_close(found[real], want[real])


def test_a_model_that_hands_on_more_than_its_states_runs_as_ever():
    """The last block reads what an earlier one wrote elsewhere."""
    model = tiny_llama()
    blocks = find_blocks(model)
    note = {}
    first, last = blocks[0].forward, blocks[-1].forward

    def writing(hidden, *args, **kwargs):
        note["mean"] = hidden.mean(1, keepdim=True)
        return first(hidden, *args, **kwargs)

    def reading(hidden, *args, **kwargs):
        return last(hidden + note.pop("mean", 0.0), *args, **kwargs)

    blocks[0].forward, blocks[-1].forward = writing, reading
    want = logits(model, pad(RETAIN))
    with cached_prefix(model, pad(RETAIN, [1])):
        for _ in range(2):
            assert_close(logits(model, pad(RETAIN)), want)
    assert blocks[0].forward is writing


@FAMILIES
def test_the_model_is_left_as_it_was_found(family):
    model = family()
    owner = next(m for m in model.modules() if find_blocks(model)[0] in _members(m))
    for fail in (False, True):
        try:
            with cached_prefix(model, pad(RETAIN, [1])):
                logits(model, pad(RETAIN))
                if fail:
                    raise RuntimeError
        except RuntimeError:
            pass
        assert all("forward" not in vars(block) for block in find_blocks(model))
        assert not owner._forward_pre_hooks


def _members(module):
    return [
        block
        for child in module.children()
        if isinstance(child, torch.nn.ModuleList)
        for block in child
    ]


def test_no_more_than_its_share_of_memory_is_kept(monkeypatch):
    model = tiny_llama()
    row = 24 * 4  # bytes a token
    monkeypatch.setattr("erasure.unlearning.training.frozen_prefix.MAX_CACHE_BYTES", 11 * row)
    runs = counting(find_blocks(model)[0])
    rows = Sequences(tuple((1, 2, n, 4, 5) for n in range(5, 9)), (4,) * 4)
    with cached_prefix(model, pad(rows, [0])):
        logits(model, pad(rows))
        runs.clear()
        logits(model, pad(rows, [0, 1]))
        assert not runs
        logits(model, pad(rows, [1, 2]))
        assert runs
