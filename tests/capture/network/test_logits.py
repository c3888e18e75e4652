"""The head is given the chosen positions alone, and gives what it would have given."""

import pytest
from torch.testing import assert_close

from capture.data.sequences import pad
from capture.network.logits import answer_logits
from tests.helpers.model_families import rows, tiny

# Cohere, Gemma 2 and Granite scale or cap their logits after the head.
FAMILIES = ("llama", "gpt2", "neox", "gptj", "cohere", "gemma2", "granite", "mamba")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_the_whole_output(family):
    model, batch = tiny(family), pad(rows())
    mask = batch.answer_mask
    sizes = []
    head = model.get_output_embeddings()
    assert head is not None
    handle = head.register_forward_hook(
        lambda _module, inputs, _output: sizes.append(inputs[0].shape[:-1].numel())
    )
    found = []
    for logits in (
        answer_logits(model, batch, mask),
        model(**batch.model_inputs, use_cache=False).logits[mask],
    ):
        model.zero_grad()
        logits.log_softmax(-1)[:, 3].sum().backward()
        slopes = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([logits.detach(), *slopes])
    handle.remove()
    assert sizes == [int(mask.sum()), mask.numel()]
    for ours, whole in zip(*found, strict=True):
        assert_close(ours, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))
