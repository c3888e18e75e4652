"""A redirection takes one key to another's value and moves the rest least."""

import pytest
import torch
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

from capture.data.sequences import Sequences
from capture.network.hooks import count_hooks
from capture.network.structure import down_projection, find_blocks
from erasure.weights.rocr import _mlp_keys, rocr_
from evidence.errors import InputError
from tests.helpers.tiny_erasure import tiny_gpt2, tiny_llama

FORGET = Sequences(((3, 5, 7, 9),), (3,))
HARMLESS = Sequences(((4, 6, 8, 2), (4, 6, 8)), (3, 3))
BACKGROUND = Sequences(
    tuple(tuple((7 * i + 3 * j) % 38 + 1 for j in range(8)) for i in range(12)), (8,) * 12
)


def matrix_of(model, layer=1):
    module = down_projection(find_blocks(model)[layer])
    weight = module.get_parameter("weight").detach().double()
    return module, weight.T if isinstance(module, Conv1D) else weight


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2])
def test_the_key_gives_the_other_value_and_only_one_matrix_changed(family):
    model = family()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    module, before = matrix_of(model)
    prompts = Sequences(((3, 5, 7),), (3,))
    key = _mlp_keys(model, module, prompts, ends=True)[0]
    value = before @ _mlp_keys(model, module, Sequences(((4, 6, 8),), (3,)), ends=True)[0]
    hooks = count_hooks(model)
    edit = rocr_(model, 1, FORGET, HARMLESS, BACKGROUND)
    assert count_hooks(model) == hooks
    _, after = matrix_of(model)
    assert_close(after @ key, value, rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(after - before, tol=1e-5) == 1
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, state[n])]
    assert len(changed) == 1
    assert edit.relative_norm == pytest.approx(float((after - before).norm() / before.norm()),
                                      rel=1e-3)  # fmt: skip


def test_no_other_change_with_that_effect_moves_the_background_less():
    model = tiny_llama()
    module, before = matrix_of(model)
    key = _mlp_keys(model, module, Sequences(((3, 5, 7),), (3,)), ends=True)[0]
    rest = _mlp_keys(model, module, BACKGROUND, ends=False)
    rocr_(model, 1, FORGET, HARMLESS, BACKGROUND, ridge=1e-6)
    change = matrix_of(model)[1] - before
    cost = (rest @ change.mT).square().sum()
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(change.shape, generator=rng, dtype=torch.float64)
        other -= torch.outer(other @ key, key) / (key @ key)  # leaves the key alone
        tried = change + 0.01 * other
        assert (rest @ tried.mT).square().sum() > cost * (1 - 1e-4)
    plain = torch.outer(change @ key, key) / (key @ key)
    assert (rest @ plain.mT).square().sum() > cost


def test_bad_input_is_one_clear_error():
    model = tiny_llama()
    with pytest.raises(InputError, match="not the index of a block"):
        rocr_(model, 7, FORGET, HARMLESS, BACKGROUND)
    with pytest.raises(InputError, match="harmless and background rows"):
        rocr_(model, 1, FORGET, Sequences((), ()), BACKGROUND)
    with pytest.raises(InputError, match="ridge > 0"):
        rocr_(model, 1, FORGET, HARMLESS, BACKGROUND, ridge=0.0)
