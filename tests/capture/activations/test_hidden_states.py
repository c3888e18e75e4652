import pytest
from torch import nn
from torch.testing import assert_close

from capture.activations.hidden_states import module_output
from capture.data.sequences import pad
from capture.network.hooks import count_hooks
from capture.network.structure import find_blocks
from evidence.errors import InputError
from tests.helpers.tiny_erasure import RETAIN, tiny_llama


def test_states_are_the_block_output_and_leave_no_hook():
    model, batch = tiny_llama(), pad(RETAIN)
    got = module_output(model, find_blocks(model)[1], batch)
    assert count_hooks(model) == 0
    want = model(**batch.model_inputs, output_hidden_states=True).hidden_states[2]
    assert_close(got, want)


def test_a_module_outside_the_pass_is_refused():
    model, batch = tiny_llama(), pad(RETAIN)
    with pytest.raises(InputError, match="never reached Linear"):
        module_output(model, nn.Linear(2, 2), batch)
