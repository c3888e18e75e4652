"""Which parts of a candidate are the original's: by names, and on real checkpoints."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from capture.checkpoints.open import open_checkpoint
from capture.network.untouched import Untouched, untouched
from testbeds.worlds.random_models import FAMILIES, random_model

EMBEDDINGS = {
    "llama": ("model.embed_tokens.weight",),
    "gpt2": ("transformer.wte.weight", "transformer.wpe.weight"),
    "neox": ("gpt_neox.embed_in.weight",),
}


def original(family):
    torch.manual_seed(0)
    model = random_model(family, vocabulary=20, width=8, layers=4, heads=2, pad=0)
    return open_checkpoint(model, tokenizer=object())


def known(checkpoint, changed) -> Untouched:
    found = untouched(checkpoint, changed)
    assert found is not None
    return found


def names(checkpoint):
    return list(checkpoint.load().state_dict())


@pytest.mark.parametrize("family", FAMILIES)
class TestPlaces:
    def test_an_edit_of_the_embedding_leaves_every_block(self, family):
        for name in EMBEDDINGS[family]:
            found = known(original(family), [name])
            assert found == Untouched(False, (0, 1, 2, 3), True, 4)
            assert found.back == 0
            assert found.words == "blocks 0 to 3, last norm and output layer"

    def test_every_tensor_has_one_place(self, family):
        checkpoint = original(family)
        whole = known(checkpoint, [])
        assert whole == Untouched(True, (0, 1, 2, 3), True, 4)
        assert whole.back is None
        for name in names(checkpoint):
            found = untouched(checkpoint, [name])
            assert found is not None
            changed = 4 - len(found.blocks) + (not found.embedding) + (not found.readout)
            assert changed == 1, name

    def test_an_edit_of_the_first_block_leaves_the_back_and_one_of_the_last_does_not(self, family):
        checkpoint = original(family)
        of_block = {k: [n for n in names(checkpoint) if f".{k}." in n] for k in (0, 3)}
        assert all(of_block.values())
        first, last = (known(checkpoint, of_block[block]) for block in (0, 3))
        assert (first.blocks, first.back) == ((1, 2, 3), 1)
        assert (last.blocks, last.back) == ((0, 1, 2), None)
        assert last.words == "embedding, blocks 0 to 2, last norm and output layer"

    def test_names_without_their_first_part_are_found(self, family):
        prefix, rest = EMBEDDINGS[family][0].split(".", 1)
        assert untouched(original(family), [rest]) == untouched(
            original(family), [f"{prefix}.{rest}"]
        )


def test_an_unknown_name_gives_no_evidence():
    assert untouched(original("llama"), ["somewhere.else.weight"]) is None


def test_a_network_without_blocks_gives_no_evidence():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    checkpoint = open_checkpoint(net, tokenizer=object())
    assert untouched(checkpoint, ["0.weight"]) is None


@given(st.booleans(), st.sets(st.integers(0, 5)), st.booleans())
def test_the_back_is_a_whole_end_of_the_model(embedding, blocks, readout):
    found = Untouched(embedding, tuple(sorted(blocks)), readout, 6)
    if found.back is None:
        everything = embedding and readout and len(blocks) == 6
        assert not readout or 5 not in blocks or everything
    else:
        assert readout
        assert set(range(found.back, 6)) <= blocks
        assert found.back == 0 or found.back - 1 not in blocks
