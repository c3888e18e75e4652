"""What public functions take as a model and as rows."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from capture.activations.capture import capture_activations
from capture.checkpoints.live import editable_model, plain_model, readable_model
from capture.data.sequences import Sequences
from capture.data.tokenization import encode
from capture.network.model_inputs import as_rows
from capture.network.structure import matrix_view
from capture.scoring.answers import score_answers
from evidence.errors import InputError
from tests.helpers.model_families import tiny
from tests.helpers.tiny_models import word_level

IDS: Any = ((5, 6, 7), (8, 9), (1, 2, 3, 4))


def given_forms(ids):
    width = max(map(len, ids))
    padded = {"right": [], "left": []}
    masks = {"right": [], "left": []}
    for row in ids:
        gap = [0] * (width - len(row))
        padded["right"].append([*row, *gap])
        padded["left"].append([*gap, *row])
        masks["right"].append([1] * len(row) + gap)
        masks["left"].append([*gap, *([1] * len(row))])
    for side in padded:
        yield {"input_ids": padded[side], "attention_mask": masks[side]}
        tensors = {"input_ids": torch.tensor(padded[side])}
        yield tensors | {"attention_mask": torch.tensor(masks[side])}
    yield [list(row) for row in ids]
    yield [np.array(row) for row in ids]
    yield [torch.tensor(row) for row in ids]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_form_of_the_same_rows_is_the_same(ids):
    expected = tuple(map(tuple, ids))
    for form in given_forms(ids):
        assert as_rows(form).ids == expected


def test_one_row_and_tensors_of_rows():
    assert as_rows([5, 6, 7]).ids == as_rows(torch.tensor([5, 6, 7])).ids == ((5, 6, 7),)
    assert as_rows(np.array([[1, 2], [3, 4]])).ids == ((1, 2), (3, 4))
    rows = Sequences(IDS, (2, 1, 3))
    assert as_rows(rows) is rows


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3, "got int"),
        ([], "without entries"),
        (None, "got NoneType"),
        (["a", 3], "no rows of tokens"),
        ([[1, "a"]], "no rows of tokens"),
        (torch.rand(2, 2), "float32 of shape"),
        (np.zeros((1, 1, 1), int), "of shape"),
        ({"ids": [1]}, "a field input_ids; got the fields ids"),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "padding between its tokens"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "differ in shape"),
        (["a text"], "does not say which it is"),
    ],
)
def test_what_holds_no_rows_is_refused_with_the_reason(value, reason):
    with pytest.raises(InputError, match=reason):
        as_rows(value, tiny("llama"))


def test_a_tensor_that_may_be_padded_is_refused():
    model = tiny("llama")
    model.config.pad_token_id = 0
    with pytest.raises(InputError, match="does not say which of them are padding"):
        as_rows(torch.tensor([[5, 6, 7], [8, 9, 0]]), model)
    assert len(as_rows(torch.tensor([[5, 6, 7], [8, 9, 1]]), model)) == 2


def test_texts_find_the_tokenizer_beside_the_model(tmp_path):
    tokenizer = word_level()
    tokenizer.save_pretrained(tmp_path)
    tiny("llama").save_pretrained(tmp_path)
    model = type(tiny("llama")).from_pretrained(tmp_path)
    texts: Any = ["Who wrote the book?", "Anna Keller"]
    expected = encode(tokenizer, texts)
    assert as_rows(texts, model) == as_rows(tuple(texts), model) == expected
    assert as_rows(texts[0], model) == encode(tokenizer, texts[0]) == encode(tokenizer, texts[:1])
    found = capture_activations(model, texts, ["resid.1"]).site("resid.1")
    assert np.array_equal(found, capture_activations(model, expected, ["resid.1"]).site("resid.1"))


def test_slices_and_masks_of_rows():
    rows = Sequences(IDS, (2, 1, 3))
    assert rows[:2].ids == rows[[0, 1]].ids == rows[np.array([True, True, False])].ids == IDS[:2]
    assert rows[-1].ids == rows[torch.tensor([2])].ids == IDS[2:]
    assert len(rows[[]]) == 0
    for wrong in ([3], [0.5], [[0]], [True], "a"):
        with pytest.raises(InputError, match="no such rows"):
            rows[wrong]


def test_what_is_no_model_is_refused():
    for value in ("gpt2", None, 3, {"weights": 1}):
        with pytest.raises(InputError, match="unsupported type"):
            score_answers(value, Sequences(IDS, (2, 1, 3)))  # pyright: ignore[reportArgumentType]


def test_wrappers_give_the_module_that_they_run():
    model = tiny("llama")
    assert plain_model(model) is model
    assert plain_model(nn.DataParallel(model)) is model
    assert plain_model(torch.compile(model, backend="eager")) is model


@pytest.mark.filterwarnings("ignore")
def test_learned_prompts_are_refused_and_adapters_kept():
    from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

    tuned = get_peft_model(
        tiny("llama"), PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    )
    with pytest.raises(InputError, match="learned prompt tokens"):
        capture_activations(tuned, IDS, ["resid.0"])
    adapted = get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"]))
    assert readable_model(adapted) is adapted.get_base_model()
    with pytest.raises(InputError, match="an adapter adds to them"):
        editable_model(adapted)


def test_weights_that_are_not_in_memory_are_not_read():
    from accelerate import cpu_offload

    model = tiny("llama")
    model.config.attention_dropout = 0.25  # a structure that no other test has looked at
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(InputError, match="some are not in memory"):
        readable_model(offloaded)
    found = capture_activations(offloaded, IDS, ["resid.1"]).site("resid.1")
    assert np.array_equal(
        found, capture_activations(tiny("llama"), IDS, ["resid.1"]).site("resid.1")
    )


def test_quantized_weights_are_not_changed_or_read_as_numbers():
    model = tiny("llama")
    layer = model.get_submodule("model.layers.0.mlp.down_proj")
    packed = torch.zeros(layer.get_parameter("weight").shape, dtype=torch.uint8)
    layer.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(InputError, match="those of this model are quantized"):
        editable_model(model)
    with pytest.raises(InputError, match="quantized"):
        matrix_view(layer)
