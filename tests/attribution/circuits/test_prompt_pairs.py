"""Pairs line up token for token, differ in the entity alone, or are refused."""

import numpy as np
import pytest
import torch

from attribution.circuits.metrics import make_batch
from attribution.circuits.prompt_pairs import (
    NO_PARTNER,
    NOT_ALIGNED,
    NOT_NAMED,
    SAME_TOKEN,
    make_pairs,
    pair_entities,
    pair_items,
)
from capture.data.items import Item
from evidence.errors import InputError
from testbeds.worlds.biographies import SMALL, make_people
from testbeds.worlds.biography_text import make_tokenizer
from tests.helpers.tiny_models import byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def people():
    return make_people(SMALL, 0)[0]


def rng():
    return np.random.default_rng(0)


def test_pairs_of_items_differ_in_the_entity_alone(tokenizer, people):
    pairs = pair_items(tokenizer, people, rng(), prompt_indices=(None, 0, 1), per_prompt=2)
    assert len(pairs) == 2 * 3 * len(people)
    assert pairs.skipped == ()
    by_id = {item.id: item for item in people}
    answers = {(i.relation, tokenizer.encode(i.answer)[0]) for i in people}
    for row in range(len(pairs)):
        item = by_id[pairs.ids[row].split("/")[0]]
        clean, corrupt = pairs.clean.ids[row], pairs.corrupt.ids[row]
        start = pairs.clean.answer_start[row]
        assert pairs.entities[row] == item.entity
        assert len(clean) == len(corrupt) and start == pairs.corrupt.answer_start[row]
        assert clean[start:] == corrupt[start:]
        apart = [p for p in range(start) if clean[p] != corrupt[p]]
        first, last = (tokenizer.encode(word)[0] for word in item.entity.split())
        assert 0 < len(apart) <= 2
        assert {clean[p] for p in apart} <= {first, last}
        assert pairs.foils[row] != clean[start]
        assert (item.relation, pairs.foils[row]) in answers


def test_the_same_seed_gives_the_same_pairs(tokenizer, people):
    one, other = (pair_items(tokenizer, people, rng()) for _ in range(2))
    assert one == other
    assert one[[2, 0]].ids == (one.ids[2], one.ids[0])


def item(entity, answer, relation="home", prompt="{} lives in"):
    return Item(f"{entity}-{answer}", entity, prompt.format(entity), answer, relation)


def test_items_that_cannot_be_paired_are_counted(tokenizer):
    items = [
        item("Anna Keller", "Oslo"),
        item("Bruno Lopez", "Riga"),
        item("Bartholomew Lopez", "Rome"),  # spelled in letters
        item("Clara Novak", "pilot", "job"),
    ]
    pairs = pair_items(tokenizer, items, rng())
    assert len(pairs) == 2
    assert dict(pairs.skipped) == {
        "Bartholomew Lopez-Rome": NOT_ALIGNED,
        "Clara Novak-pilot": NO_PARTNER,
    }


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([item("Anna Keller", "Oslo"), item("Bruno Lopez", "Oslo")], NO_PARTNER),
        ([item("Anna Keller", "Oslo"), item("Bob Lopez", "Riga")], NOT_ALIGNED),
        ([item("Anna Keller", "Oslo"), item("Bruno Lopez", "Oslo North")], SAME_TOKEN),
    ],
)
def test_a_set_without_any_pair_is_refused_with_its_reasons(tokenizer, items, reason):
    with pytest.raises(InputError) as error:
        pair_items(tokenizer, items, rng())
    assert f"{reason} (2)" in str(error.value)


def test_a_prompt_that_does_not_name_its_entity_is_left_out(tokenizer):
    items = [
        Item("a", "Anna Keller", "This one lives in", "Oslo", "home"),
        item("Bruno Lopez", "Riga"),
        item("Clara Novak", "Rome"),
    ]
    pairs = pair_items(tokenizer, items, rng())
    assert pairs.skipped == (("a", NOT_NAMED),)
    assert set(pairs.entities) == {"Bruno Lopez", "Clara Novak"}


def test_without_relations_both_must_be_asked_the_same(tokenizer):
    items = [
        item("Anna Keller", "Oslo", ""),
        item("Bruno Lopez", "Riga", ""),
        item("Clara Novak", "pilot", "", "{} works as a"),
    ]
    pairs = pair_items(tokenizer, items, rng())
    assert set(pairs.entities) == {"Anna Keller", "Bruno Lopez"}
    assert pairs.skipped == (("Clara Novak-pilot", NO_PARTNER),)


def test_couples_are_two_by_two_and_of_like_names(tokenizer, people):
    found = pair_entities(tokenizer, people, rng())
    assert set(found) == set(people.entities)
    assert all(found[found[name]] == name != found[name] for name in found)
    pairs = pair_items(tokenizer, people, rng(), partners=found)
    first = {item.id: item for item in people}
    for row, name in enumerate(pairs.entities):
        other = tokenizer.encode(found[name])
        assert set(other) <= set(pairs.corrupt.ids[row])
        assert first[pairs.ids[row].split("/")[0]].entity == name
    odd = [
        item("Anna Keller", "Oslo"),
        item("Bruno Lopez", "Riga"),
        item("Bartholomew Lopez", "Rome"),
    ]
    assert set(pair_entities(tokenizer, odd, rng())) == {"Anna Keller", "Bruno Lopez"}
    assert pair_entities(tokenizer, [], rng()) == {}


def test_hand_made_pairs_are_checked():
    words = byte_level()
    france, peru = "The capital city of France is", "The capital city of Peru is"

    def pairs(prompts, corrupt, answers=("Paris",), foils=("Lima",)):
        return make_pairs(words, prompts, corrupt, answers, foils)

    far = "The capital city of the new country of Ouagadougou is"
    with pytest.raises(InputError, match="do not line up"):
        pairs([france], [far])
    with pytest.raises(InputError, match="its own corrupt prompt"):
        pairs([france], [france])
    with pytest.raises(InputError, match="begin with the same token"):
        pairs([peru], ["The capital city of Oslo is"], ["Lima"], ["Lima"])
    with pytest.raises(InputError, match="differ in number"):
        pairs([france, peru], [peru])
    with pytest.raises(InputError, match="differ in number"):
        pairs([], [], [], [])


def test_a_batch_runs_no_further_than_it_must(tokenizer):
    pairs = make_pairs(
        tokenizer,
        ["Anna Keller lives in", "The trade that feeds Anna Keller is"],
        ["Bruno Lopez lives in", "The trade that feeds Bruno Lopez is"],
        ["Oslo Riga", "pilot"],
        ["Rome", "nurse"],
    )
    lengths = pairs.clean.answer_start
    one = make_batch(pairs, [0, 1], "logit_difference", torch.device("cpu"))
    assert one.token_mask.sum(1).tolist() == list(lengths)
    assert one.metric_mask.nonzero().tolist() == [[r, n - 1] for r, n in enumerate(lengths)]
    assert one.targets.tolist() == [tokenizer.encode(w)[0] for w in ("Oslo", "pilot")]
    assert one.foils.tolist() == [tokenizer.encode(w)[0] for w in ("Rome", "nurse")]
    whole = make_batch(pairs, [0, 1], "answer_logprob", torch.device("cpu"))
    assert whole.row_idx.tolist() == [0, 0, 1]
    assert whole.token_mask.sum(1).tolist() == [lengths[0] + 1, lengths[1]]
