"""Invented items differ from their models in the name alone."""

import time
from collections import Counter
from dataclasses import replace
from difflib import get_close_matches

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capture.data.invented_entities import _UsedNames, invent_items
from capture.data.items import Item, ItemSet, normalize_text
from evidence.errors import InputError

GIVEN = ["Anna", "Ben", "Carla", "Dmitri", "Elena", "Farid", "Greta", "Hugo"]
FAMILY = ["Keller", "Okafor", "Silva", "Petrov", "Lindqvist", "Rahimi", "Moreau"]
COUNTRIES = (
    "France Germany Peru Chile Nigeria Niger Oman Romania Japan Jordan Norway Ghana "
    "Kenya Brazil Canada Mexico Egypt Turkey Greece Poland Sweden Finland Denmark "
    "Austria Hungary Bolivia Ecuador Uruguay Vietnam Thailand Cambodia Malaysia"
).split()


def people():
    return ItemSet(
        tuple(
            Item(
                f"{given}-{relation}",
                f"{given} {family}",
                f"{given} {family} was {relation} in",
                f"city {at % 3}",
                relation,
                ("city 7", "city 8"),
                (f"Where was {given}  {family} {relation}?",),
            )
            for at, (given, family) in enumerate(zip(GIVEN, FAMILY, strict=False))
            for relation in ("born", "taught")
        ),
        "people",
    )


def countries(names=COUNTRIES):
    return ItemSet(
        tuple(
            Item(f"c{at}", name, f"The capital city of {name} is", f"Capital{at}")
            for at, name in enumerate(names)
        )
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("world", [people, countries])
def test_only_the_name_changes(world, seed):
    known = world()
    forget = known.of_entities(known.entities[:4])
    invented = invent_items(forget, known, np.random.default_rng(seed))
    pairs = list(zip(forget, invented, strict=True))
    renamed = {}
    for before, after in pairs:
        assert renamed.setdefault(before.entity, after.entity) == after.entity
        for old, new in zip(
            (before.prompt, *before.paraphrases), (after.prompt, *after.paraphrases), strict=True
        ):
            assert " ".join(old.split()).replace(before.entity, after.entity) == new
        assert after.answer == before.answer
        assert after.alternatives == before.alternatives
        assert after.relation == before.relation
        assert len(after.entity.split()) == len(before.entity.split())
    assert len(set(renamed.values())) == len(forget.entities)
    assert Counter(i.answer for i in invented) == Counter(i.answer for i in forget)
    assert len({item.id for item in (*known, *invented)}) == len(known) + len(invented)


@pytest.mark.parametrize("seed", range(5))
def test_no_name_is_known_or_part_of_a_known_one(seed):
    known = countries()
    invented = invent_items(known, known, np.random.default_rng(seed))
    names = [normalize_text(name) for name in known.entities]
    answers = {normalize_text(item.answer) for item in known}
    for entity in map(normalize_text, invented.entities):
        assert not any(entity in name or name in entity for name in names)
        assert entity not in answers
        assert len(entity) >= 3


def test_people_get_a_given_name_first_and_a_family_name_last():
    known = people()
    invented = invent_items(known.of_entities(known.entities[:3]), known, np.random.default_rng(0))
    for entity in invented.entities:
        given, family = entity.split()
        assert given in GIVEN
        assert family in FAMILY
        assert entity not in known.entities


def test_an_answer_is_never_a_name():
    # Two people leave two recombinations, and one of them is an answer.
    known = ItemSet(
        (
            Item("a", "Anna Keller", "Anna Keller loves", "Ben Keller"),
            Item("b", "Ben Okafor", "Ben Okafor loves", "nobody"),
        )
    )
    forget = known.of_entities(["Anna Keller"])
    for seed in range(20):
        invented = invent_items(forget, known, np.random.default_rng(seed))
        assert invented.entities != ("Ben Keller",)


def test_whole_words_are_renamed_and_others_stay():
    known = countries()
    item = Item("n", "Niger", "Niger borders Nigeria; the capital of niger is", "Niamey")
    exact = ItemSet((item,))
    (after,) = invent_items(exact, known, np.random.default_rng(0))
    assert "Nigeria" in after.prompt
    assert after.prompt.startswith(after.entity)
    lower = ItemSet((Item("n", "Niger", "the capital of NIGER is", "Niamey"),))
    (after,) = invent_items(lower, known, np.random.default_rng(0))
    assert after.prompt == f"the capital of {after.entity} is"


def test_the_same_seed_gives_the_same_names():
    known = countries()
    first, repeated, other = (
        invent_items(known, known, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first == repeated
    assert first.entities != other.entities


@pytest.mark.parametrize("field", ["prompt", "paraphrases"])
def test_a_prompt_without_its_entity_is_refused(field):
    good = Item("a", "Peru", "Peru is", "Lima")
    bad = replace(good, **{field: "Where?" if field == "prompt" else ("Where?",)})
    with pytest.raises(InputError, match="'a' does not name its entity"):
        invent_items(ItemSet((bad,)), countries(), np.random.default_rng(0))


def test_too_few_names_are_refused():
    lone = countries(["Peru"])
    with pytest.raises(InputError, match="no new name could be invented for 'Peru'"):
        invent_items(lone, lone, np.random.default_rng(0))


def facts(names, prompt):
    return ItemSet(
        tuple(
            Item(f"i{at}", name, prompt.format(name), f"答{at % 3}")
            for at, name in enumerate(names)
        )
    )


HAN = [family + given for family in "王李张刘陈杨" for given in ("小明", "雪梅", "建国", "丽华")]
KATAKANA = [
    f"{a}・{b}"
    for a in ("アンナ", "ベン", "カルラ", "エレナ", "フゴ")
    for b in ("ケラー", "シルバ", "モロー")
]
THAI = (
    "กรุงเทพ เชียงใหม่ ขอนแก่น ภูเก็ต อยุธยา สุโขทัย ลำปาง พะเยา น่าน แพร่ ตาก เลย ยโสธร "
    "อุบล ราชบุรี ชุมพร ระนอง กระบี่ ตรัง พัทลุง สงขลา ปัตตานี ยะลา"
).split()


@pytest.mark.parametrize(
    ("names", "prompt"),
    [
        (HAN, "{}出生于"),
        (HAN, "人们都说{}的老家是"),
        (KATAKANA[::2], "{}の出身地は"),
        (THAI, "เมืองหลวงของ{}คือ"),
        (["Anna", "Berta", "Carla", "Doris", "Elena", "Frieda"], "据说{}出生于"),
    ],
)
def test_names_within_text_without_spaces_are_replaced(names, prompt):
    known = facts(names, prompt)
    forget = known.of_entities(known.entities[:4])
    invented = invent_items(forget, known, np.random.default_rng(0))
    assert not set(invented.entities) & set(names)
    for before, after in zip(forget, invented, strict=True):
        assert after.prompt == prompt.format(after.entity)
        assert after.answer == before.answer


def test_a_name_of_characters_recombines_a_family_and_a_given_name():
    known = facts(HAN, "{}出生于")
    # Every other combination of a family and a given name is known, so only these are left.
    free = {"王丽华", "李丽华", "张丽华"}
    some = ItemSet(tuple(item for item in known if item.entity not in free))
    invented = invent_items(some.of_entities(some.entities[:3]), some, np.random.default_rng(1))
    assert set(invented.entities) == free


def test_a_word_of_another_script_ends_where_characters_begin():
    item = Item("n", "Niger", "Niger与Nigeria接壤，Niger的首都是", "x")
    known = facts(["Niger", *COUNTRIES], "{}")
    (after,) = invent_items(ItemSet((item,)), known, np.random.default_rng(0))
    assert after.prompt == f"{after.entity}与Nigeria接壤，{after.entity}的首都是"


def is_free_by_comparing_all(names, answers, name):
    """What ``_UsedNames.is_free`` says, written as its definition."""
    folded, known = normalize_text(name), [normalize_text(each) for each in names]
    if folded in set(map(normalize_text, answers)):
        return False
    if any(folded in each or each in folded for each in known):
        return False
    return not get_close_matches(folded, known, 1, 0.9 if " " in folded else 0.8)


WORDS = st.text("abcdeﬁ", min_size=1, max_size=7)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)


@given(st.lists(NAMES, min_size=1, max_size=30, unique=True), st.lists(NAMES, max_size=20))
@settings(deadline=None)
def test_a_name_is_free_where_comparing_it_with_every_known_one_says_so(names, candidates):
    used = _UsedNames(names[: len(names) // 2], {"abc"})
    for name in names[len(names) // 2 :]:
        used.add(name)
    for name in (*candidates, *names, *(name[1:] + "e" for name in names if len(name) > 2)):
        assert used.is_free(name) == is_free_by_comparing_all(names, {"abc"}, name)


def test_thousands_of_names_are_invented_in_seconds():
    letters = "abdegiklmnorstu"
    rng = np.random.default_rng(0)

    def word():
        return "".join(rng.choice(list(letters), rng.integers(4, 8))).capitalize()

    given_names, family_names = ([word() for _ in range(400)] for _ in range(2))
    names = [f"{rng.choice(given_names)} {rng.choice(family_names)}" for _ in range(2000)]
    known = countries(list(dict.fromkeys(names)))
    start = time.process_time()
    invented = invent_items(known, known, np.random.default_rng(0))
    assert len(invented.entities) == len(known.entities)
    # It took a minute when every candidate was compared with every name.
    assert time.process_time() - start < 10
