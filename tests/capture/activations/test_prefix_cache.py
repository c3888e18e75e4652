"""Running what rows share once gives what running every row whole gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.activations import passes
from capture.activations.capture import capture_activations
from capture.activations.positions import select_positions
from capture.activations.prefix_cache import group_by_prefix, supports_prefix_cache
from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks
from tests.helpers.model_families import tiny

SITES = ["embed", "attn.1", "resid.0", "mlp.1", "resid.1", "logits"]


def statements(seed=0, prompts=4, answers=5) -> Sequences:
    """Prompts of several lengths, each before answers of one to three tokens."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(prompts):
        prompt = tuple(rng.integers(5, 40, rng.integers(4, 9)).tolist())
        for _ in range(answers):
            rows.append(prompt + tuple(rng.integers(5, 40, rng.integers(1, 4)).tolist()))
    order = rng.permutation(len(rows))
    rows = [rows[place] for place in order]
    return Sequences(tuple(rows), tuple(len(row) - 1 for row in rows))


def plainly(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patched:
        patched.setattr(passes, "supports_prefix_cache", lambda model: False)
        return capture_activations(*arguments, **options)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("positions", ["last", "answer"])
@pytest.mark.parametrize("tokens", [4096, 40])
def test_shared_and_plain_passes_agree(family, positions, tokens, monkeypatch):
    model, rows = tiny(family), statements()
    shared = capture_activations(model, rows, SITES, positions, batch_tokens=tokens)
    plain = plainly(monkeypatch, model, rows, SITES, positions)
    for name in SITES:
        assert np.allclose(shared.site(name), plain.site(name), atol=2e-6)
    assert count_hooks(model) == 0


def test_shared_prompts_are_run_once(monkeypatch):
    model, rows = tiny("llama"), statements(prompts=3, answers=8)
    ran, embed = [], model.model.embed_tokens.forward
    monkeypatch.setattr(
        model.model.embed_tokens, "forward", lambda ids: ran.append(ids.numel()) or embed(ids)
    )
    capture_activations(model, rows, ["resid.1"], "last")
    shared, ran[:] = sum(ran), []
    plainly(monkeypatch, model, rows, ["resid.1"], "last")
    # The check on two rows is part of the cost.
    assert shared < 0.75 * sum(ran)


def test_the_pass_still_ends_at_the_deepest_site():
    model, ran = tiny("gpt2"), []
    for layer, block in enumerate(model.get_submodule("transformer.h").children()):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    capture_activations(model, statements(), ["resid.0"], "last")
    assert set(ran) <= {0}


def test_a_model_that_looks_ahead_is_run_plainly(monkeypatch):
    """Its values at a prompt depend on the answer, so that no prompt is shared."""
    model, rows = tiny("llama"), statements()
    first = model.model.layers[0]

    def look_ahead(module, args, output):
        return output + output.mean(1, keepdim=True)

    first.register_forward_hook(look_ahead)
    found = capture_activations(model, rows, ["resid.1"], "last").site("resid.1")
    expected = plainly(monkeypatch, model, rows, ["resid.1"], "last").site("resid.1")
    assert np.array_equal(found, expected)


def test_rows_that_share_little_or_whose_start_is_asked_for_have_no_plan():
    rng = np.random.default_rng(0)
    apart = tuple(tuple(rng.integers(5, 1000, 9).tolist()) for _ in range(20))
    rows = Sequences(apart, (8,) * 20)
    assert group_by_prefix(rows, select_positions(rows, "last")) is None
    alike = statements()
    assert group_by_prefix(alike, select_positions(alike, "mean")) is None
    assert group_by_prefix(alike, select_positions(alike, 0)) is None
    assert group_by_prefix(alike, select_positions(alike, "last")) is not None


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 7))
@settings(deadline=None)
def test_plans_hold_every_row_once_and_share_only_what_is_equal(seed, prompts, answers):
    rows = statements(seed, prompts, answers)
    wanted = select_positions(rows, "last")
    groups = group_by_prefix(rows, wanted)
    if groups is None:
        return
    assert wanted.index is not None
    assert sorted(row for _, members in groups for row in members) == list(range(len(rows)))
    for length, members in groups:
        assert length >= 1
        assert len({rows.ids[row][:length] for row in members}) == 1
        assert all(wanted.index[row].min() >= length for row in members)


def test_bfloat16_shares_or_not_but_never_breaks():
    model = tiny("llama").bfloat16()
    values = capture_activations(model, statements(), ["resid.1"], "last").values
    assert np.isfinite(values).all()


@pytest.mark.parametrize("family", ["mamba", "jamba", "bamba", "lfm2", "recurrent-gemma"])
def test_a_recurrent_state_is_no_prefix_cache(family):
    model = tiny(family)
    assert not supports_prefix_cache(model)
    prefix = tuple(range(5, 25))
    shared = Sequences(tuple((*prefix, last) for last in (30, 31, 32)), (21,) * 3)
    got = capture_activations(model, shared, ["resid.2"], "last").site("resid.2")
    for row in range(3):
        alone = capture_activations(model, shared[[row]], ["resid.2"], "last").site("resid.2")
        np.testing.assert_allclose(got[row], alone[0], atol=1e-4)


def test_keys_and_values_are_one():
    assert supports_prefix_cache(tiny("llama")) and supports_prefix_cache(tiny("gpt2"))
