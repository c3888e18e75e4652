"""Scores against the model's own generation, and against the plain computation."""

import numpy as np
import pytest
import torch
from torch import nn

from capture.data.items import Item
from capture.data.sequences import Sequences, pad
from capture.network import logits as heads
from capture.network.logits import answer_logits
from capture.scoring import answers
from capture.scoring.answers import score_answers
from capture.scoring.choices import alternatives_of, score_choices
from capture.scoring.generation import generate_greedy
from evidence.errors import InputError
from evidence.seeds import torch_rng
from tests.helpers.tiny_models import FAMILIES, byte_level

VOCABULARY = 500  # more than the tokenizer has


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param](VOCABULARY)


def rows(count=9, seed=0):
    """Rows of mixed prompt and answer lengths."""
    rng = torch_rng(seed, "rows")
    lengths = torch.randint(1, 9, (count, 2), generator=rng).tolist()
    ids = [
        tuple(torch.randint(0, VOCABULARY, (p + a,), generator=rng).tolist()) for p, a in lengths
    ]
    return Sequences(tuple(ids), tuple(p for p, _ in lengths))


def plain(model, sequences):
    """Log-probability of each answer, one row at a time and without padding."""
    totals = []
    for ids, start in zip(sequences.ids, sequences.answer_start, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        logprob = logits.log_softmax(-1)
        totals.append(sum(logprob[at - 1, ids[at]].item() for at in range(start, len(ids))))
    return np.array(totals)


def generated(model, sequences, added):
    """Rows that hold what ``model.generate`` adds to each prompt."""
    ids = []
    for row, start in zip(sequences.ids, sequences.answer_start, strict=True):
        prompt = torch.tensor([row[:start]])
        out = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=added,
            do_sample=False,
            pad_token_id=0,
        )
        ids.append(tuple(out[0].tolist()))
    return Sequences(tuple(ids), sequences.answer_start)


@pytest.mark.parametrize("tokens", [1, 24, 4096])
def test_logprob_equals_the_plain_computation_at_any_batch_size(model, tokens):
    sequences = rows()
    scores = score_answers(model, sequences, batch_tokens=tokens)
    np.testing.assert_allclose(scores.logprob, plain(model, sequences), rtol=1e-4)
    lengths = [
        len(ids) - start for ids, start in zip(sequences.ids, sequences.answer_start, strict=True)
    ]
    np.testing.assert_array_equal(scores.n_tokens, lengths)
    np.testing.assert_allclose(scores.mean_logprob, scores.logprob / lengths)


def test_greedy_is_what_generate_says(model):
    greedy_answers = generated(model, rows(), added=5)
    assert score_answers(model, greedy_answers).greedy.all()
    for place in range(1, 6):  # one wrong token, anywhere, and it is not
        other = tuple(
            (*ids[:-place], (ids[-place] + 1) % VOCABULARY, *ids[len(ids) - place + 1 :])
            for ids in greedy_answers.ids
        )
        scores = score_answers(model, Sequences(other, greedy_answers.answer_start))
        assert not scores.greedy.any()


def test_a_random_answer_is_greedy_exactly_when_generate_agrees(model):
    # Every one-token answer of a small vocabulary: exactly one is greedy.
    small = type(model)(model.config.__class__(**model.config.to_dict() | {"vocab_size": 11}))
    small.eval()
    sequences = Sequences(tuple((3, 5, last) for last in range(11)), (2,) * 11)
    scores = score_answers(small, sequences)
    token = generated(small, sequences[[0]], added=1).ids[0][-1]
    assert np.flatnonzero(scores.greedy).tolist() == [token]
    assert np.exp(scores.logprob).sum() == pytest.approx(1.0, abs=1e-5)


def test_the_head_sees_answer_positions_only_and_changes_nothing(model):
    sequences = rows()
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(out.shape[:-1].numel())
    )
    gathered = score_answers(model, sequences)
    handle.remove()
    assert sum(seen) == gathered.n_tokens.sum()
    batch = pad(sequences)
    where = batch.answer_mask.roll(-1, dims=1)
    with torch.no_grad():
        full = model(**batch.model_inputs).logits[where]
        ours = answer_logits(model, batch, where)
    torch.testing.assert_close(ours, full, rtol=1e-5, atol=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_without_a_separable_head_scores_the_same(model, monkeypatch):
    gathered = score_answers(model, rows())
    for module in (heads, answers):
        monkeypatch.setattr(module, "output_head", lambda model: None)
    full = score_answers(model, rows())
    np.testing.assert_allclose(gathered.logprob, full.logprob, rtol=1e-5)
    np.testing.assert_array_equal(gathered.greedy, full.greedy)


def test_logits_are_computed_in_parts_that_keep_to_the_budget(model, monkeypatch):
    whole = score_answers(model, rows())
    monkeypatch.setattr(answers, "MAX_LOGITS", 10 * VOCABULARY)
    seen = []
    model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: seen.append(out.shape[:-1].numel())
    )
    parts = score_answers(model, rows())
    assert max(seen) <= 10
    np.testing.assert_allclose(parts.logprob, whole.logprob, rtol=1e-5)


def test_capping_after_the_head_is_kept():
    class Capped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = FAMILIES["llama"](VOCABULARY)

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, input_ids, attention_mask):
            out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
            return out.logits.tanh()

    model = Capped().eval()
    sequences = rows(3)
    scores = score_answers(model, sequences)
    ids, start = sequences.ids[0], sequences.answer_start[0]
    with torch.no_grad():
        logprob = model(torch.tensor([ids]), torch.ones(1, len(ids))).log_softmax(-1)
    expected = sum(logprob[0, at - 1, ids[at]].item() for at in range(start, len(ids)))
    assert scores.logprob[0] == pytest.approx(expected, rel=1e-4)


def test_nan_logits_mean_that_the_model_does_not_know(model):
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[:, 0] = torch.nan
    # Token 0 too, which is what argmax makes of a row of NaN.
    scores = score_answers(model, rows() + Sequences(((5, 0),), (1,)))
    assert (scores.logprob == -np.inf).all()
    assert not scores.greedy.any()


def test_rows_that_cannot_be_scored_are_refused_and_the_mode_is_kept(model):
    for ids, start in (((1, 2), 2), ((1, 2), 0)):
        with pytest.raises(InputError, match="row 0 cannot be scored"):
            score_answers(model, Sequences((ids,), (start,)))
    model.train()
    score_answers(model, rows(2))
    assert model.training
    assert len(score_answers(model, Sequences((), ()))) == 0
    assert list(score_answers(model, rows(2)).to_frame()) == [
        "logprob",
        "mean_logprob",
        "greedy",
        "n_tokens",
    ]


def test_generate_greedy_equals_generating_each_prompt_alone(model):
    tokenizer = byte_level()
    prompts = ["Peru is", "The capital city of France is", "Anna", "New York, Vienna"]
    alone = [
        tokenizer.decode(
            model.generate(
                **tokenizer(prompt, return_tensors="pt", return_token_type_ids=False),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
            )[0, len(tokenizer(prompt)["input_ids"]) :],
            skip_special_tokens=True,
        )
        for prompt in prompts
    ]
    assert generate_greedy(model, tokenizer, prompts, 6) == alone
    assert generate_greedy(model, tokenizer, prompts, 6, batch_tokens=1) == alone
    with pytest.raises(InputError, match="cannot generate"):
        generate_greedy(nn.Linear(2, 2), tokenizer, prompts, 6)


class FixedLogits(nn.Module):
    """Gives each next token the probability that a table sets for it."""

    def __init__(self, logit):
        super().__init__()
        self.logit = nn.Parameter(logit)

    def forward(self, input_ids, attention_mask):
        return self.logit.expand(*input_ids.shape, -1)


def test_choices_and_truth_ratio_follow_the_definition():
    tokenizer = byte_level()
    logit = torch.randn(len(tokenizer), generator=torch_rng(0, "logit"))
    model = FixedLogits(logit)
    item = Item("a", "Peru", "Peru is", "Lima", alternatives=("Oslo", "New York"))
    scores = score_choices(model, tokenizer, [item])
    logprob = logit.log_softmax(0)
    mean = [
        logprob[tokenizer(" " + text)["input_ids"]].mean().item()
        for text in ("Lima", "Oslo", "New York")
    ]
    assert scores.answer[0] == pytest.approx(mean[0], rel=1e-5)
    assert scores.best_alternative[0] == pytest.approx(max(mean[1:]), rel=1e-5)
    assert scores.correct[0] == (mean[0] > max(mean[1:]))
    ratio = (np.exp(mean[1]) + np.exp(mean[2])) / 2 / np.exp(mean[0])
    assert scores.truth_ratio[0] == pytest.approx(ratio, rel=1e-5)
    assert scores.n_alternatives[0] == 2
    assert len(scores.to_frame()) == len(scores) == 1


def test_a_model_without_preference_is_not_correct_and_has_ratio_one():
    item = Item("a", "Peru", "Peru is", "Lima", alternatives=("Oslo",))
    tokenizer = byte_level()
    for value in (0.0, torch.nan):
        model = FixedLogits(torch.full((len(tokenizer),), value))
        scores = score_choices(model, tokenizer, [item])
        assert not scores.correct[0]
        assert scores.truth_ratio[0] == pytest.approx(1.0, rel=1e-5)


def test_alternatives_are_drawn_from_the_relation_and_never_right():
    items = [
        Item(f"c{at}", f"country {at}", f"Capital of {at}?", f"city {at}", "capital")
        for at in range(6)
    ]
    items.append(Item("b", "Anna", "Anna was born in", "Oslo", "birthplace"))
    items.append(Item("b2", "Ben", "Ben was born in", "Vienna", "birthplace"))
    # A second right answer to the same prompt, and one for the same entity.
    items.append(Item("c9", "country 0", "Capital of 0?", "city 1", "capital"))
    items.append(Item("c10", "country 0", "And the capital of 0?", "City  2", "capital"))
    drawn = dict(zip([item.id for item in items], alternatives_of(items), strict=True))
    assert set(drawn["c0"]) == {"city 3", "city 4", "city 5"}
    assert len(drawn["c3"]) == len(set(drawn["c3"])) == 3
    assert "city 3" not in drawn["c3"]
    assert drawn["b"] == ("Vienna",)


def test_drawn_alternatives_do_not_depend_on_the_order_of_the_items():
    items = [Item(f"c{at}", f"country {at}", f"Capital of {at}?", f"city {at}") for at in range(9)]
    assert alternatives_of(items[::-1]) == alternatives_of(items)[::-1]
    assert len(set(alternatives_of(items))) > 4  # and differ from item to item


def test_an_item_keeps_its_own_alternatives_but_not_its_answer():
    item = Item("a", "Peru", "Peru is", "Lima", alternatives=("lima", "Oslo"))
    assert alternatives_of([item]) == (("Oslo",),)


def test_no_alternative_at_all_is_refused():
    with pytest.raises(InputError, match="'a' has no wrong answer"):
        alternatives_of([Item("a", "Peru", "Peru is", "Lima")])


def test_generation_ends_where_positions_do():
    tokenizer, model = byte_level(), FAMILIES["gpt2"](VOCABULARY)
    most = model.config.n_positions
    one = tokenizer("a")["input_ids"]
    assert len(one) == 1
    prompts = ["a" * length for length in (4, most - 3, most, most - 3)]
    found = generate_greedy(model, tokenizer, prompts, 8)
    free = generate_greedy(model, tokenizer, prompts[:1], 8)
    assert found[0] == free[0]  # not cut short by its neighbours
    assert found[1] == found[3] == generate_greedy(model, tokenizer, prompts[1:2], 3)[0]
    assert found[2] == ""
    with pytest.raises(InputError, match="does not fit"):
        generate_greedy(model, tokenizer, ["a" * (most + 1)], 8)
