"""Interventions do what they say, and leave the model as they found it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.activations.capture import capture_activations
from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks, evaluation_mode, patch, project_out, record, steer
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from tests.helpers.model_families import TEXT, WIDTH, Cnn, pixels, tiny

IDS = torch.tensor([[4, 8, 15, 16, 23, 42], [3, 9, 27, 21, 2, 6]])


def logits(model):
    with torch.no_grad():
        output = model(IDS)
    return output.logits if "logits" in output else output.last_hidden_state


def see(model, *names):
    with torch.no_grad(), record(model, names) as got:
        model(IDS)
    return got


def vector(seed=0):
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


def broken(value):
    raise RuntimeError("broken on purpose")


OPERATIONS = {
    "record": lambda m: record(m, ["resid.0", "attn.1", "head.1.2", "embed"]),
    "record and stop": lambda m: record(m, ["resid.0", "mlp.1"], stop=True),
    "patch": lambda m: patch(m, {"resid.0": vector(), "mlp.2": torch.zeros(1)}),
    "patch by function": lambda m: patch(m, {"embed": torch.tanh}, [0, -1]),
    "steer": lambda m: steer(m, {"attn.0": vector(), "resid.2": vector()}, 2.0),
    "project out": lambda m: project_out(m, {"resid.1": vector()}, torch.tensor([1, 2])),
}
FAILURES = {
    "unknown site": lambda m: patch(m, {"resid.0": vector(), "resid.9": vector()}),
    "bad shape": lambda m: patch(m, {"resid.0": torch.zeros(5)}),
    "bad steering": lambda m: steer(m, {"resid.1": torch.zeros(5)}),
    "bad position": lambda m: patch(m, {"resid.0": vector()}, [17]),
    "bad row positions": lambda m: patch(m, {"resid.0": vector()}, torch.tensor([0])),
    "bad mask": lambda m: patch(m, {"resid.0": vector()}, torch.ones(1, 2, dtype=torch.bool)),
    "edit raises": lambda m: patch(m, {"resid.0": vector(), "resid.1": broken}),
    "pick raises": lambda m: record(m, ["resid.0"], lambda site, value: broken(value)),
}


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_the_model_as_found(family, name):
    model = tiny(family)
    before, count = logits(model), count_hooks(model)
    with OPERATIONS[name](model):
        assert count_hooks(model) > count
        logits(model)
    assert count_hooks(model) == count == 0
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", FAILURES)
def test_failures_leave_the_model_as_found(name):
    model = tiny("llama")
    before = logits(model)
    with pytest.raises((InputError, RuntimeError)), FAILURES[name](model):
        logits(model)
    assert count_hooks(model) == 0
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_callers_block_leaves_the_model_as_found(name, error):
    model = tiny("gpt2")
    with pytest.raises(error), OPERATIONS[name](model):
        raise error
    assert count_hooks(model) == 0


def test_hooks_of_others_are_counted_and_kept():
    model = tiny("llama")
    handle = model.model.norm.register_forward_hook(lambda *_: None)
    with record(model, ["resid.0"], stop=True):
        logits(model)
    assert count_hooks(model) == 1
    handle.remove()


@pytest.mark.parametrize("family", TEXT)
def test_stopping_runs_nothing_after_the_deepest_site(family):
    model = tiny(family)
    body = model if family == "bert" else model.base_model
    stack = next(m for n, m in body.named_children() if n in ("layers", "h", "encoder"))
    *_, last = (stack.get_submodule("layer") if family == "bert" else stack).children()
    ran = []
    handle = last.register_forward_pre_hook(lambda *_: ran.append(1))
    with record(model, ["resid.1", "embed"], stop=True) as got:
        logits(model)
        ran.append("the call returned")
    handle.remove()
    assert not ran
    assert got.keys() == {"resid.1", "embed"}
    assert torch.equal(got["resid.1"], see(model, "resid.1")["resid.1"])


def test_deepest_means_last_to_run_not_last_asked_for():
    model = tiny("llama")
    with record(model, ["resid.2", "embed", "attn.1"], stop=True) as got:
        logits(model)
    assert len(got) == 3


def test_a_stop_meant_for_another_is_passed_on():
    model = tiny("llama")
    with record(model, ["resid.0"], stop=True) as outer:
        with record(model, ["resid.2"], stop=True) as inner:
            logits(model)
        pytest.fail("the outer recorder has all it needs and must stop here")
    assert set(outer) == {"resid.0"} and not inner


def test_a_site_that_never_runs_is_an_error_when_stopping():
    model = Cnn()
    with pytest.raises(InputError, match="never reached"), record(model, ["resid.0"], stop=True):
        model.first(pixels())


def test_recorded_values_survive_changes_made_in_place():
    model, images = Cnn(), pixels()
    # The network's relu_ rewrites the output of its first layer.
    with torch.no_grad():
        raw = model.first(images).clone()
    sites = {"first": model.first}
    from capture.network.sites import Place, Sites

    where = Sites({"first": Place("first", sites["first"], "out")}, 1, None, 0, None)
    with torch.no_grad(), record(model, ["first"], known_sites=where) as got:
        model(images)
    assert torch.equal(got["first"], raw) and (raw < 0).any()


def test_recording_keeps_gradients_where_they_are_on():
    model = tiny("llama")
    with record(model, ["resid.1"]) as got:
        output = model(IDS).logits
    (gradient,) = torch.autograd.grad(output.sum(), got["resid.1"], retain_graph=True)
    assert gradient.abs().max() > 0  # a copy, which the network goes on with
    (gradient,) = torch.autograd.grad(got["resid.1"].sum(), model.model.embed_tokens.weight)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("site", ["embed", "resid.1", "attn.1", "mlp.1", "head.1.2"])
def test_an_edit_is_seen_where_it_was_made_and_downstream_only(family, site):
    model = tiny(family)
    width = see(model, site)[site].shape[-1]
    value = torch.arange(float(width))
    before = see(model, "resid.0", "resid.2", "head.1.1")
    with patch(model, {site: value}):
        after = see(model, site, "resid.0", "resid.2", "head.1.1")
    assert torch.equal(after[site], value.expand_as(after[site]))
    assert not torch.allclose(after["resid.2"], before["resid.2"])
    if site != "embed":
        assert torch.equal(after["resid.0"], before["resid.0"])
        assert torch.equal(after["head.1.1"], before["head.1.1"])


def test_patching_with_the_value_that_is_there_changes_nothing():
    model = tiny("gpt2")
    names = ["embed", "resid.0", "attn.1", "mlp.2", "head.2.1", "resid.2", "logits"]
    there, before = see(model, *names), logits(model)
    with patch(model, there):
        assert torch.equal(logits(model), before)


def test_patching_from_another_run_reproduces_it_downstream():
    model = tiny("neox")
    source = see(model, "resid.1")["resid.1"].flip(0)
    with patch(model, {"resid.1": source}):
        torch.testing.assert_close(logits(model), logits(tiny("neox")).flip(0))


@pytest.mark.parametrize("order", ["edit first", "record first"])
@pytest.mark.parametrize("site", ["resid.1", "embed"])
def test_a_recorder_sees_the_edit_whichever_was_opened_first(order, site):
    model = tiny("llama")
    with torch.no_grad():
        if order == "edit first":
            with patch(model, {site: vector()}), record(model, [site]) as got:
                model(IDS)
        else:
            with record(model, [site]) as got, patch(model, {site: vector()}):
                model(IDS)
    assert torch.equal(got[site], vector().expand(2, 6, WIDTH))


def test_the_librarys_own_hidden_states_show_the_edit():
    model = tiny("llama")
    with torch.no_grad():
        model(IDS, output_hidden_states=True)  # installs the library's own hooks
        with patch(model, {"resid.0": vector()}):
            hidden = model(IDS, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[1], vector().expand(2, 6, WIDTH))


@pytest.mark.parametrize(
    ("positions", "where"),
    [
        ([1, -1], [[1, 5], [1, 5]]),
        ([-6], [[0], [0]]),
        (torch.tensor([2, -1]), [[2], [5]]),
        (torch.tensor([[0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool(), [[3, 4], [0]]),
        (None, [range(6), range(6)]),
        ([], [[], []]),
    ],
)
@pytest.mark.parametrize("site", ["resid.1", "head.1.2", "embed"])
def test_edits_reach_the_positions_named_and_no_others(positions, where, site):
    model = tiny("llama")
    before = see(model, site)[site]
    with steer(model, {site: torch.ones(before.shape[-1])}, 3.0, positions):
        after = see(model, site)[site]
    expected = before.clone()
    for row, places in enumerate(where):
        expected[row, list(places)] += 3.0
    torch.testing.assert_close(after, expected)


def test_one_vector_a_row():
    model = tiny("llama")
    each = torch.stack([vector(1), vector(2)])
    with patch(model, {"resid.1": each}, torch.tensor([0, 3])):
        after = see(model, "resid.1")["resid.1"]
    assert torch.equal(after[0, 0], vector(1)) and torch.equal(after[1, 3], vector(2))


def test_positions_of_the_prompt_do_not_move_to_generated_tokens():
    model = tiny("llama")
    model.generation_config.pad_token_id = 0
    seen = []

    def note(value):
        seen.append(value.shape[1])
        return value

    def generate():
        with torch.no_grad():
            return model.generate(  # pyright: ignore[reportCallIssue]
                IDS, max_new_tokens=3, do_sample=False, eos_token_id=-1
            )

    with patch(model, {"resid.1": note}, [5]):
        generate()
    assert seen == [6]
    seen.clear()
    with patch(model, {"resid.1": note}):
        generate()
    assert seen == [6, 1, 1]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 1000), st.booleans())
def test_projecting_out_removes_the_span_and_nothing_else(rank, seed, dependent):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, WIDTH, generator=generator) * 7
    if dependent:
        basis = torch.cat([basis, basis.sum(0, keepdim=True)])
    model = tiny("llama")
    before = see(model, "resid.1")["resid.1"]
    with project_out(model, {"resid.1": basis}):
        after = see(model, "resid.1")["resid.1"]
    assert (after @ basis.T).abs().max() < 1e-3
    axes = torch.linalg.qr(basis[:rank].T.double()).Q
    outside = torch.eye(WIDTH).double() - axes @ axes.T
    torch.testing.assert_close(
        after.double() @ outside, before.double() @ outside, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("rows", [0, 2])
def test_projecting_out_nothing_changes_nothing(rows):
    model = tiny("llama")
    before = logits(model)
    with project_out(model, {"resid.1": torch.zeros(rows, WIDTH)}):
        torch.testing.assert_close(logits(model), before)


def test_images_have_no_positions():
    model = Cnn()
    with (
        pytest.raises(InputError, match="no positions"),
        patch(model, {"resid.0": torch.zeros(1)}, [0]),
    ):
        model(pixels())
    with torch.no_grad(), patch(model, {"resid.0": torch.zeros(1)}):
        one, other = model(pixels()[:2])
    torch.testing.assert_close(one, other)


def test_evaluating_gives_each_module_its_mode_back():
    model = tiny("llama").train()
    model.model.norm.eval()
    with pytest.raises(ValueError), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        raise ValueError
    assert model.training and not model.model.norm.training
    assert model.model.layers[0].training


def test_an_output_can_be_differentiated_by_what_was_recorded():
    model = tiny("llama")
    sites = ["resid.0", "attn.1", "head.1.2"]
    with record(model, sites) as got:
        output = model(IDS).logits[0, -1].sum()
    slopes = torch.autograd.grad(output, [got[site] for site in sites])
    for site, slope in zip(sites, slopes, strict=True):
        step = 1e-2 * slope / slope.norm()
        values = []
        for sign in (1, -1):
            edit = {site: lambda value, sign=sign, step=step: value + sign * step}
            with torch.no_grad(), patch(model, edit):
                values.append(model(IDS).logits[0, -1].sum())
        slope_along = (values[0] - values[1]) / 2e-2
        torch.testing.assert_close(slope_along, slope.norm(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("way", ["wrapped", "in place"])
def test_a_compiled_model_is_edited_and_recorded(way):
    model = tiny("llama")
    vector = torch.randn(WIDTH) * 3
    with torch.no_grad(), patch(model, {"resid.1": lambda v: v + vector}):
        expected = model(IDS).logits
    plain = model(IDS).logits
    compiled: Any = torch.compile(model, backend="eager") if way == "wrapped" else model
    if way == "in place":
        model.compile(backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(IDS).logits, plain)
        with patch(compiled, {"resid.1": lambda v: v + vector}):
            with record(compiled, ["resid.1"]) as got:
                edited = compiled(IDS).logits
        torch.testing.assert_close(edited, expected)
        assert got["resid.1"].shape == (*IDS.shape, WIDTH)
        torch.testing.assert_close(compiled(IDS).logits, plain)


MIXED = Sequences(((5, 6, 7), (9, 4, 8, 3, 11), (12, 13), (7, 7, 9, 20)), (3, 5, 2, 4))


def last_states(model, edit, positions, padding: Any = "right"):
    """States at every row's own last token, with and without an edit of block 0."""
    plain = capture_activations(model, MIXED, ["resid.2"], "last").site("resid.2")
    with steer(model, {"resid.0": edit}, 1.0, positions):
        got = capture_activations(model, MIXED, ["resid.2"], "last", padding=padding)
    return np.abs(got.site("resid.2") - plain).max(1) > 1e-3


@pytest.mark.parametrize("padding", ["right", "left"])
def test_an_edit_of_one_row_is_of_that_row_of_the_sequences(padding):
    model = tiny("llama")
    edit = torch.zeros(4, WIDTH)
    edit[2] = 3.0
    assert last_states(model, edit, None, padding).tolist() == [False, False, True, False]
    with pytest.raises(InputError, match="another number of rows than the sequences"):
        last_states(model, edit[:3], None)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize(
    ("positions", "moved"),
    [
        ([-1], [True] * 4),
        ([1], [True] * 4),
        (torch.tensor([2, 4, 1, 3]), [True] * 4),
        (torch.tensor([[i == 3 for _ in range(5)] for i in range(4)]), [False] * 3 + [True]),
    ],
)
def test_positions_of_an_edit_are_those_of_the_sequences(positions, moved, padding):
    assert last_states(tiny("llama"), vector() * 4, positions, padding).tolist() == moved


@pytest.mark.parametrize("positions", [[2], torch.tensor([0, 0, 2, 0])])
def test_positions_outside_a_row_of_the_sequences_are_refused(positions):
    with pytest.raises(InputError, match="a position lies outside the rows"):
        last_states(tiny("llama"), vector(), positions)


def test_an_edit_at_positions_of_a_shared_prefix_is_made():
    model = tiny("llama")
    prefix = tuple(range(5, 25))
    rows = Sequences(tuple((*prefix, last) for last in (30, 31, 32, 33)), (21,) * 4)
    plain = capture_activations(model, rows, ["resid.2"], "last").site("resid.2")
    with steer(model, {"resid.0": vector() * 4}, 1.0, [3]):
        together = capture_activations(model, rows, ["resid.2"], "last").site("resid.2")
        alone = capture_activations(model, rows[[0]], ["resid.2"], "last").site("resid.2")
    assert (np.abs(together - plain).max(1) > 1e-3).all()
    np.testing.assert_allclose(alone, together[:1], atol=1e-4)


def test_scores_see_an_edit_at_the_row_it_is_meant_for():
    model = tiny("llama")
    rows = Sequences(MIXED.ids, (2, 3, 1, 2))
    plain = score_answers(model, rows).logprob
    edit = torch.zeros(4, WIDTH)
    edit[1] = 3.0
    with steer(model, {"resid.0": edit}):
        moved = np.abs(score_answers(model, rows).logprob - plain) > 1e-4
    assert moved.tolist() == [False, True, False, False]


def test_an_edit_of_a_prompt_of_one_token_is_not_one_of_what_follows():
    model: Any = tiny("llama")
    prompt = torch.tensor([[7]])

    def generated(positions, **settings):
        settings |= {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
        with torch.no_grad(), steer(model, {"resid.1": vector() * 5}, 1.0, positions):
            return model.generate(prompt, max_new_tokens=6, do_sample=False, **settings).tolist()

    assert generated([0]) == generated([0], use_cache=False)
    assert generated([0]) != generated(None)
