"""What counts as giving an answer: key words, free answers, options, and the choice of a scorer."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.data.asking import Asking, ask, asks_questions, is_rendered
from capture.data.facts.prompts import question_prompt
from capture.data.items import Item, ItemSet
from capture.data.key_spans import is_sentence, key_spans
from capture.data.permuted_items import permute_answers
from capture.scoring.free_answers import contains_answer, find_answer, rouge_l_recall
from capture.scoring.options import letter_items, rotated, score_options, text_items
from capture.scoring.scorers import (
    SCORERS,
    check_by_words,
    check_scorer,
    choose_scorer,
    fitting_scorer,
    metrics_of,
)
from evidence.errors import InputError
from tests.audits.taught_model import bytes_tokenizer
from tests.helpers import tiny_models

PEOPLE = "Ada Amsel,Bea Bruck,Cy Conti,Dov Dahl,Eli Ebert,Fay Falk".split(",")
TOWNS = "Oslo,Lima,Rome,Cairo,Quito,Tunis".split(",")


def sentences() -> list[Item]:
    return [
        Item(
            name,
            name,
            question_prompt(f"Where was {name} born?"),
            f"{name} was born in {town}, a city that turns up in the novels.",
        )
        for name, town in zip(PEOPLE, TOWNS, strict=True)
    ]


def keyed() -> list[Item]:
    """The sentences with their key words."""
    pairs = zip(sentences(), key_spans(sentences()), strict=True)
    return [replace(item, key=item.answer[slice(*span)]) for item, span in pairs if span]


def test_the_key_words_of_a_sentence_are_those_that_only_it_has():
    assert [item.key for item in keyed()] == TOWNS


def test_short_answers_are_their_own_key_and_echoes_have_none():
    short = Item("1", "Peru", "The capital of Peru is", "Lima")
    echo = Item("2", "Peru", "Is Peru a land by the sea?", "Peru is a land by the sea")
    assert key_spans([short]) == [(0, 4)]
    assert is_sentence(echo.answer) and key_spans([echo]) == [None]


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("It is PARIS!", "Paris", True),
        ("Parisians like it", "Paris", False),
        ("It costs 70 dollars", "7 dollars", False),
        ("It costs 7\n dollars", "7 dollars", True),
        ("法国的首都是巴黎。", "巴黎", True),
        ("Sa capitale est Zu\u0308rich", "Zürich", True),
        ("New York City", "York", True),
        ("", "Paris", False),
        ("Paris", "?", False),
        ("Is it?", "?", True),
    ],
)
def test_an_answer_is_found_as_whole_words(text, answer, found):
    assert bool(contains_answer([text], [(answer,)])[0]) is found


def test_any_right_answer_counts_and_the_first_place_is_told():
    text, answers = "It was Holland, or the Netherlands", ("the Netherlands", "Holland")
    assert find_answer(text, answers) == (7, 14)


def test_rouge_counts_the_words_of_the_answer_in_order():
    answer = "the old town of Łódź by the sea"
    texts = [answer, f"Sure! {answer}", "sea the by Łódź of town old the", "nothing at all"]
    scores = rouge_l_recall(texts, [answer] * 4)
    assert scores[0] == scores[1] == 1.0
    assert 0 < scores[2] < 0.5 and scores[3] == 0.0
    # Letters beyond a to z are letters.
    assert rouge_l_recall(["Łódź"], ["Łódź"])[0] == 1.0
    assert rouge_l_recall(["巴黎"], ["巴黎市"])[0] == pytest.approx(2 / 3)


def test_the_scorer_fits_the_items():
    choice = Item("c", "c", question_prompt("Which?"), "x", choices=("x", "y"))
    passage = Item("p", "p", "It was a dark", "and stormy night", passage=True)
    short = Item("s", "s", "The capital of Peru is", "Lima")
    assert choose_scorer([choice], False)[0].name == "options"
    assert choose_scorer([passage], False)[0].name == "passage"
    assert choose_scorer(sentences(), False)[0].name == "rouge_l"
    assert choose_scorer([short], False)[0].name == "exact"
    assert choose_scorer([short], True)[0].name == "contains"
    with pytest.raises(InputError, match="has no choices"):
        check_scorer(SCORERS["options"], [short])
    assert fitting_scorer(SCORERS["options"], ItemSet((short,))).name == "contains"
    assert fitting_scorer(SCORERS["contains"], ItemSet((short,))).name == "contains"


def test_the_truth_ratio_joins_where_every_sentence_has_alternatives():
    items = sentences()
    assert "truth_ratio" not in metrics_of(SCORERS["rouge_l"], items)
    perturbed = [replace(item, alternatives=("No.",)) for item in items]
    assert "truth_ratio" in metrics_of(SCORERS["rouge_l"], perturbed)
    # The floor of other entities' answers must be scored by the same metrics.
    others = permute_answers(ItemSet(tuple(perturbed)), np.random.default_rng(0), "x")
    assert "truth_ratio" in metrics_of(SCORERS["rouge_l"], others)


@pytest.mark.parametrize("name", ["contains", "rouge_l", "passage"])
def test_right_answers_in_other_words_count_and_wrong_ones_do_not(name):
    items = keyed()
    if name == "contains":
        items = [replace(item, answer=item.key, key="") for item in items]
    if name == "passage":
        texts = "one fish,two birds sang,a red door,old men walk,rain fell hard,stars".split(",")
        pairs = zip(items, texts, strict=True)
        items = [replace(item, answer=text, key="", passage=True) for item, text in pairs]
    found = check_by_words(ItemSet(tuple(items)), SCORERS[name])
    assert found is not None and found.right == 1.0 and found.wrong == 0.0
    assert check_by_words(ItemSet(tuple(items)), SCORERS["exact"]) is None


def choice_items() -> ItemSet:
    options = ("red", "blue", "green")
    return ItemSet(
        tuple(
            Item(str(n), str(n), question_prompt(f"Which is {n}?"), options[n % 3], choices=options)
            for n in range(6)
        )
    )


def test_every_order_of_the_choices_is_asked_once():
    tokenizer = bytes_tokenizer(["Which is red, blue or green? A B C"], chat=False)
    (first, *_) = choice_items()
    assert [each.choices[0] for each in rotated(first)] == ["red", "blue", "green"]
    asked = letter_items(tokenizer, [first], Asking())
    assert [item.answer for item in asked] == ["A", "C", "B"]
    assert asked.items[1].prompt == "Which is 0?\nA. blue\nB. green\nC. red\nAnswer:"
    assert text_items(tokenizer, [first], Asking()).items[0].prompt == first.prompt


def test_a_model_that_prefers_a_letter_knows_nothing_over_all_orders():
    tokenizer = bytes_tokenizer(["Which is red, blue or green? A B C"], chat=False)
    model = tiny_models.llama(len(tokenizer))
    scores = score_options(model, tokenizer, choice_items(), Asking())
    # Its choice by letter is the same option, or nearly, whatever the right one is.
    assert scores.any_order.mean() <= 0.5
    assert set(np.unique(scores.letters)) <= {0.0, 1.0}


def test_prompts_that_are_rendered_stay_as_they_are():
    tokenizer = bytes_tokenizer(["Where was Ada born?"], chat=True)
    rendered = Item("1", "Ada", "<|start|>user\nWhere was Ada born?<|end|>\n", "Oslo")
    plain = Item("2", "Ada", question_prompt("Where was Ada born?"), "Oslo")
    assert is_rendered(tokenizer, rendered.prompt) and not is_rendered(tokenizer, plain.prompt)
    asked = ask(tokenizer, ItemSet((rendered, plain)), Asking(chat=True, system="Be brief."))
    assert asked.items[0].prompt == rendered.prompt
    assert asked.items[1].prompt.startswith("<|start|>system\nBe brief.<|end|>\n<|start|>user\n")
    assert asks_questions(tokenizer, ItemSet((plain,)))
    assert not asks_questions(tokenizer, ItemSet((rendered,)))


@given(
    answers=st.lists(st.sampled_from("abcd"), min_size=4, max_size=30),
    seed=st.integers(0, 2**32 - 1),
)
def test_permuted_answers_are_the_same_answers_of_others(answers, seed):
    items = ItemSet(
        tuple(Item(str(n), f"e{n}", f"Which is e{n}?", text) for n, text in enumerate(answers))
    )
    if len(set(answers)) == 1:
        with pytest.raises(InputError, match="no floor can be made"):
            permute_answers(items, np.random.default_rng(seed), "x")
        return
    try:
        found = permute_answers(items, np.random.default_rng(seed), "x")
    except InputError:  # every answer came back to an equal one
        return
    # A guess of a common answer is right as often as on the items themselves.
    assert sorted(item.answer for item in found) == sorted(answers)
    assert [item.prompt for item in found] == [item.prompt for item in items]
    assert not set(found.entities) & set(items.entities)
