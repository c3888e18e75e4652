"""States by depth and of one module are the very tensors that the model goes on with."""

import pytest
import torch
from torch import nn

from capture.activations.hidden_states import module_output, record_depths
from capture.data.sequences import pad
from capture.network.hooks import count_hooks
from capture.network.structure import find_blocks
from evidence.errors import InputError
from tests.helpers.tiny_erasure import RETAIN, tiny_gpt2, tiny_llama, tiny_neox


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])
def test_states_are_those_of_the_library_to_the_last_bit(family):
    model, batch = family(), pad(RETAIN)
    theirs = model(**batch.model_inputs, output_hidden_states=True).hidden_states
    hooks = count_hooks(model)  # the library leaves its own
    with record_depths(model, (2, 0, 1)) as seen:
        logits = model(**batch.model_inputs).logits
    for depth in range(3):
        assert torch.equal(seen[str(depth)], theirs[depth])
    alone = module_output(model, find_blocks(model)[1], batch)
    assert torch.equal(alone, theirs[2])
    assert count_hooks(model) == hooks
    # No copy: what the model computes from the states has its gradient through them.
    slope = torch.autograd.grad(logits.sum(), seen["1"])
    assert slope[0].abs().max() > 0


def test_a_module_outside_the_pass_is_refused():
    model, batch = tiny_llama(), pad(RETAIN)
    with pytest.raises(InputError, match="never reached Linear"):
        module_output(model, nn.Linear(2, 2), batch)
    assert count_hooks(model) == 0
