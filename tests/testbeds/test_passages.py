"""Passages and their screening, on a model that was made to know some of them."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from capture.data.sequences import Sequences, pad
from erasure.unlearning.training.objectives import token_logprobs
from evidence.errors import InputError
from testbeds.memorized_codes import passages
from testbeds.memorized_codes.passages import (
    N_CONTEXT_TOKENS,
    PASSAGES,
    PREDICTABLE,
    Passage,
    screen,
    text_logprobs,
    text_rows,
)
from tests.helpers.tiny_erasure import tiny_llama


class Letters(PreTrainedTokenizerBase):
    """A tokenizer of one token a letter, as much of one as is needed."""


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    def encode(tokenizer, texts):
        ids = tuple(tuple(ord(sign) % 37 + 1 for sign in text) for text in texts)
        return Sequences(ids, tuple(map(len, ids)))

    monkeypatch.setattr(passages, "encode", encode)
    monkeypatch.setattr(passages, "PREDICTABLE", PREDICTABLE[:2])


def taught(text: str) -> nn.Module:
    model = tiny_llama()
    rows = text_rows(Letters(), [text])
    batch = pad(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logprob, _ = token_logprobs(model, batch, "all")
        (-logprob.mean()).backward()
        optimizer.step()
    return model.eval()


def test_every_passage_has_a_key_and_a_paraphrase_of_like_length():
    keys = [each.key for each in PASSAGES]
    assert len(set(keys)) == len(keys) >= 30
    texts = [each.known for each in PASSAGES] + [each.paraphrase for each in PASSAGES]
    assert len({*texts, *PREDICTABLE}) == 2 * len(PASSAGES) + len(PREDICTABLE)
    for each in PASSAGES:
        words = [len(text.split()) for text in (each.known, each.paraphrase)]
        assert 0.7 < words[0] / words[1] < 1.4, each.key
        # Words that carry meaning are swapped; what binds them may stay.
        own, other = ({w for w in t.lower().split() if len(w) > 6}
                      for t in (each.known, each.paraphrase))  # fmt: skip
        assert not own or len(own & other) <= len(own) / 2, each.key


def test_what_was_taught_passes_and_what_was_not_does_not():
    known, other = "abcabdabeabfabgabhabi", "zyxzywzyvzyuzytzyszyr"
    model = taught(known)
    found = screen(
        model,
        Letters(),
        [Passage("taught", known, other), Passage("not", other, "qponm" * 4)],
        known=-1.0,
        unknown=-1.5,
    )
    assert found.valid.tolist() == [True, False]
    assert [each.key for each in found.memorized] == ["taught"]
    assert found.known[0] > found.known[1] + 1
    # A model that was taught nothing passes nothing.
    assert not screen(tiny_llama(), Letters(), found.passages).valid.any()


def test_log_probabilities_are_those_of_the_tokens_after_the_lead():
    model, texts = tiny_llama(), ["abcdefghijklmn", "zyxw"]
    rows = text_rows(Letters(), texts)
    brute = []
    for ids in rows.ids:
        logits = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
        own = [float(logits[at - 1, ids[at]]) for at in range(1, len(ids))]
        brute.append(np.mean(own[min(N_CONTEXT_TOKENS, len(ids) - 1) - 1 :]))
    np.testing.assert_allclose(text_logprobs(model, Letters(), texts), brute, rtol=1e-5)


def test_long_texts_are_cut_and_bad_input_is_refused():
    assert len(text_rows(Letters(), ["a" * 300]).ids[0]) == 96
    twice = [Passage("x", "one", "two"), Passage("x", "three", "four")]
    with pytest.raises(InputError, match="a unique key"):
        screen(tiny_llama(), Letters(), twice)
    with pytest.raises(InputError, match="thresholds"):
        screen(tiny_llama(), Letters(), known=-4.0, unknown=-2.0)
