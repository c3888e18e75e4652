"""Hooks of the user and edits by row see whole rows in the caller's order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from capture.activations.capture import capture_activations
from capture.activations.store import ActivationStore
from capture.checkpoints.open import open_checkpoint
from capture.data.sequences import Sequences
from capture.network.edits.row_order import has_foreign_hooks
from capture.network.hooks import patch, project_out, record, steer
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.errors import InputError
from tests.helpers.model_families import WIDTH, tiny

PREFIX = tuple(range(10, 30))
SHARED = Sequences(tuple((*PREFIX, 31 + row) for row in range(4)), (20,) * 4)
RAGGED = Sequences(((5, 6), (7, 8, 9, 10, 11, 12), (13, 4), (14, 15, 16)), (1, 5, 1, 2))


@pytest.mark.parametrize("rows", [SHARED, RAGGED])
def test_a_hook_of_the_user_sees_the_rows_as_they_were_given(rows):
    model, seen = tiny("llama"), []
    plain = capture_activations(model, rows, ["resid.2"], "last").site("resid.2")
    handle = model.get_submodule("model.embed_tokens").register_forward_hook(
        lambda _, args, output: seen.append(args[0].clone())
    )
    assert has_foreign_hooks(model)
    hooked = capture_activations(model, rows, ["resid.2"], "last").site("resid.2")
    handle.remove()
    assert not has_foreign_hooks(model)
    (ids,) = seen
    longest = max(map(len, rows.ids))
    assert ids.tolist() == [[*row, *([0] * (longest - len(row)))] for row in rows.ids]
    np.testing.assert_allclose(hooked, plain, atol=1e-5)


def test_several_passes_under_a_hook_of_the_user_are_told_of():
    model = tiny("llama")
    with (
        model.get_submodule("model.norm").register_forward_hook(lambda *_: None),
        pytest.warns(UserWarning, match="sees the 4 rows in several passes of up to 1"),
    ):
        capture_activations(model, SHARED, ["resid.2", "final"], "last", batch_tokens=21)


@pytest.mark.parametrize("rows", [SHARED, RAGGED])
def test_a_function_of_the_values_sees_whole_rows(rows):
    model, shapes = tiny("gpt2"), []

    def edit(value):
        shapes.append(tuple(value.shape))
        return value.index_fill(1, torch.tensor([0]), 0.0)

    with patch(model, {"resid.0": edit}):
        capture_activations(model, rows, ["resid.1"], "last")
    assert shapes == [(len(rows), max(map(len, rows.ids)), WIDTH)]


def test_values_of_rows_and_positions_follow_the_rows():
    model = tiny("llama")
    given = torch.randn(4, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    with patch(model, {"resid.0": given}):
        found = capture_activations(model, RAGGED, ["resid.0"], "all", batch_tokens=6)
    for row, ids in enumerate(RAGGED.ids):
        values = found.site("resid.0")[row]
        np.testing.assert_allclose(values[: len(ids)], given[row, : len(ids)], atol=1e-6)
    with (
        patch(model, {"resid.0": given[:3]}),
        pytest.raises(InputError, match="another number of rows"),
    ):
        capture_activations(model, RAGGED, ["resid.0"], "all")


@pytest.mark.parametrize("function", ["steer", "project_out", "patch"])
def test_an_edit_that_never_acted_is_an_error(function):
    model, other = tiny("llama"), tiny("llama")
    vector = torch.ones(WIDTH)
    edits = {"steer": steer, "project_out": project_out, "patch": patch}
    with (
        pytest.raises(InputError, match=r"resid\.0 was never applied: .* did not run"),
        edits[function](model, {"resid.0": vector}),
    ):
        other(torch.tensor([[5, 6]]))


def test_a_pass_that_ends_before_the_edit_is_none():
    model = tiny("llama")
    with steer(model, {"resid.2": torch.ones(WIDTH)}):
        capture_activations(model, RAGGED, ["resid.0"], "last")


def test_an_error_inside_the_block_is_the_one_that_is_seen():
    with pytest.raises(ZeroDivisionError), steer(tiny("llama"), {"resid.0": torch.ones(WIDTH)}):
        raise ZeroDivisionError


def test_compiled_functions_around_the_model_run_edits_too():
    model = tiny("llama")
    ids = torch.tensor([[5, 6, 7]])
    call = torch.compile(lambda ids: model(ids).logits, backend="eager")
    with torch.no_grad():
        before = call(ids)
        with steer(model, {"resid.0": torch.ones(WIDTH)}):
            inside = call(ids)
        with steer(model, {"resid.0": torch.ones(WIDTH)}):
            expected = model(ids).logits
        after = call(ids)
    assert torch.equal(inside, expected) and not torch.equal(inside, before)
    assert torch.equal(after, before)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("a word", "not numeric"),
        (torch.full((WIDTH,), float("nan")), "NaN or infinity"),
        (object(), "unknown kind"),
        (torch.ones(WIDTH + 1), "does not fit"),
        (lambda value: None, "returned no tensor"),
    ],
)
def test_what_is_no_edit_is_refused(edit, reason):
    model = tiny("llama")
    wrong: Any = [edit] if isinstance(edit, str) else edit
    with pytest.raises(InputError, match=reason), patch(model, {"resid.0": wrong}):
        model(torch.tensor([[5, 6]]))


def test_a_vector_of_another_width_is_refused_in_one_sentence():
    model = tiny("llama")
    with (
        pytest.raises(InputError, match=r"another width than resid\.0"),
        steer(model, {"resid.0": np.ones(WIDTH + 1)}),
    ):
        model(torch.tensor([[5, 6]]))


def test_what_an_edited_model_shows_is_not_stored(tmp_path):
    model = tiny("llama")
    checkpoint = open_checkpoint(model)
    store = ActivationStore(tmp_path)
    with (
        pytest.raises(InputError, match="edited model"),
        steer(model, {"resid.0": torch.ones(WIDTH)}),
    ):
        store.activations(checkpoint, RAGGED, ["resid.1"], model=model)
    with model.get_submodule("model.norm").register_forward_hook(lambda *_: None):
        with pytest.raises(InputError, match="edited model"):
            store.activations(checkpoint, RAGGED, ["resid.1"], model=model)


def test_training_does_not_run_under_an_edit_by_row():
    model = tiny("llama")
    with (
        pytest.raises(InputError, match="in an order of its own"),
        steer(model, {"resid.0": torch.ones(4, WIDTH)}),
    ):
        finetune_(model, RAGGED, lr=1e-3, steps=1, seed=0)


def test_gradients_reach_every_kind_of_site():
    model = tiny("llama")
    names = ["embed", "resid_pre.1", "attn.1", "resid_mid.1", "neurons.1", "mlp.1", "head.1.0"]
    with record(model, [*names, "resid.1", "final", "logits"]) as got:
        output = model(torch.tensor([[5, 6, 7]])).logits[0, -1, 3]
    gradients = torch.autograd.grad(output, list(got.values()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_scores_under_an_edit_by_row_are_those_of_each_row_alone():
    model = tiny("gpt2")
    vectors = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    with steer(model, {"resid.0": vectors}):
        together = score_answers(model, RAGGED).logprob
    for row in range(4):
        with steer(model, {"resid.0": vectors[row]}):
            alone = score_answers(model, RAGGED[row]).logprob
        np.testing.assert_allclose(together[row], alone, atol=1e-5)


def test_a_module_alone_is_no_model_of_tokens():
    with pytest.raises(InputError, match="layers with weights"):
        capture_activations(nn.Linear(3, 3), RAGGED, ["resid.0"])
