import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from capture.data.sequences import Sequences, pad
from erasure.unlearning.training.objectives import (
    control_vector,
    count_scored,
    distillation,
    dpo,
    elm_target,
    npo,
    sequence_logprobs,
    simnpo,
    state_distance,
    token_logprobs,
    undial_target,
)
from evidence.errors import InputError
from tests.helpers.tiny_erasure import FORGET, RETAIN, gradient, tiny_gpt2, tiny_llama, tiny_neox

MIXED = Sequences(((1, 2, 3, 4, 5, 6), (7, 8, 9), (4, 4)), (3, 1, 1))


def by_hand(model, ids, first):
    with torch.no_grad():
        logprob = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprob[at - 1, ids[at]]) for at in range(first, len(ids)))


@pytest.mark.parametrize("family", [tiny_llama, tiny_gpt2, tiny_neox])
@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_sequence_logprobs_equal_one_row_at_a_time(family, loss_on):
    model = family()
    got = sequence_logprobs(model, pad(MIXED), loss_on)
    firsts = MIXED.answer_start if loss_on == "answer" else (1, 1, 1)
    rows = zip(MIXED.ids, firsts, strict=True)
    want = torch.tensor([by_hand(model, ids, first) for ids, first in rows])
    assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_token_logprobs_average_to_the_library_loss():
    model, batch = tiny_llama(), pad(MIXED)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    want = model(**batch.model_inputs, labels=labels).loss
    logprob, row = token_logprobs(model, batch)
    assert_close(-logprob.mean(), want, rtol=1e-5, atol=1e-6)
    assert row.tolist() == [0, 0, 0, 1, 1, 2]
    assert len(row) == count_scored(MIXED)


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=5), st.floats(0.01, 2), st.floats(-5, 5))
def test_npo_is_the_paper_formula(values, beta, shift):
    now = torch.tensor(values, dtype=torch.float64)
    before = now - shift
    # (2 / beta) log(1 + (pi / pi_ref) ** beta)
    want = [2 / beta * math.log1p(math.exp(beta * shift))] * len(values)
    assert_close(
        npo(now, before, beta), torch.tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-9
    )


def test_npo_starts_as_ascent_and_fades_with_the_answer():
    reference = torch.tensor([-1.0, -1.0])
    now = torch.tensor([-1.0, -101.0], requires_grad=True)
    npo(now, reference, 0.1).sum().backward()
    start, faded = gradient(now).tolist()
    assert start == pytest.approx(1.0)  # the gradient of ascent on the likelihood
    assert 0 < faded < 1e-4


def test_simnpo_by_hand():
    # Two tokens of probability 1/4 each: reward log(1/4) a token.
    loss = simnpo(torch.tensor([2 * math.log(0.25)]), torch.tensor([2]), 4.5, 0.0)
    assert loss.item() == pytest.approx(2 / 4.5 * math.log1p(0.25**4.5), rel=1e-5)
    with_margin = simnpo(torch.tensor([math.log(0.25)]), torch.tensor([1]), 2.0, 0.7)
    # -log sigmoid(x) = log(1 + exp(-x)), x = 2 log 4 - 0.7
    want = math.log1p(0.25**2 * math.exp(0.7))
    assert with_margin.item() == pytest.approx(want, rel=1e-5)


def test_simnpo_pushes_long_answers_no_harder_than_short_ones():
    logprob = torch.tensor([-1.0, -4.0], requires_grad=True)
    simnpo(logprob, torch.tensor([1, 4]), 2.5, 0.0).sum().backward()
    short, long = gradient(logprob).tolist()
    assert short == pytest.approx(4 * long, rel=1e-5)
    assert short > 0  # the likelihood goes down


def test_dpo_without_a_preferred_answer_is_npo():
    now, before = torch.tensor([-3.0, -0.5]), torch.tensor([-1.0, -1.0])
    assert_close(dpo(torch.zeros(2), now - before, 0.1), npo(now, before, 0.1))


def test_dpo_by_hand_and_its_direction():
    preferred = torch.tensor([0.5], requires_grad=True)
    rejected = torch.tensor([-0.5], requires_grad=True)
    loss = dpo(preferred, rejected, 2.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-6)
    loss.backward()
    assert gradient(preferred).item() < 0 < gradient(rejected).item()


def test_distillation_by_hand():
    target = torch.tensor([[math.log(3.0), 0.0]])
    even = torch.zeros(1, 2)
    want = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert distillation(even, target).item() == pytest.approx(want, rel=1e-6)
    assert distillation(target, target, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    warm = 4 * distillation(even, target / 2).item()
    assert distillation(even, target, 2.0).item() == pytest.approx(warm, rel=1e-5)


def test_lowered_touches_the_own_token_alone():
    logits = torch.arange(6.0).reshape(2, 3)
    moved = undial_target(logits, torch.tensor([2, 0]), 10.0) - logits
    assert moved.tolist() == [[0, 0, -10], [-10, 0, 0]]


def test_guidance_goes_from_the_expert_to_the_novice_and_on():
    expert, novice = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    ends = [elm_target(expert, novice, g).log_softmax(-1) for g in (0.0, 1.0, 3.0)]
    assert_close(ends[0], expert.log_softmax(-1))
    assert_close(ends[1], novice.log_softmax(-1))
    assert ends[2][0, 0] < ends[1][0, 0] < ends[0][0, 0]


def test_control_vector_is_a_scaled_positive_direction():
    vector = control_vector(64, 6.5, torch.Generator().manual_seed(1))
    assert vector.norm().item() == pytest.approx(6.5, rel=1e-5)
    assert (vector >= 0).all()
    repeated = control_vector(64, 6.5, torch.Generator().manual_seed(1))
    other = control_vector(64, 6.5, torch.Generator().manual_seed(2))
    assert torch.equal(vector, repeated)
    assert not torch.allclose(vector, other)


def test_state_distance_reads_real_tokens_only():
    states = torch.zeros(2, 3, 4)
    states[0] = 2.0
    states[1, 0] = 1.0
    states[1, 1:] = math.nan
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert_close(state_distance(states, torch.zeros(4), mask), torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("loss_on", ["answer", "all"])
def test_rows_without_anything_to_score_are_refused(loss_on):
    empty = Sequences(((1,),), (1,))
    with pytest.raises(InputError, match="row 1 has no token"):
        count_scored(FORGET[[0]] + empty, loss_on)


def test_an_answer_at_the_very_start_scores_from_its_second_token():
    rows = Sequences(((1, 2, 3),), (0,))
    logprob, _ = token_logprobs(tiny_llama(), pad(rows))
    assert len(logprob) == count_scored(rows) == 2


def test_unknown_loss_on_is_refused():
    with pytest.raises(InputError, match="loss_on"):
        count_scored(RETAIN, "prompt")
