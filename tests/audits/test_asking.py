"""How items are asked and scored, decided on tiny models that were taught what to say."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from audits.asking.elicitation import Elicited, elicit
from audits.asking.probes import common_prefixes
from audits.asking.selection import select_sets
from audits.core.config import make_config
from audits.core.scores import Part
from capture.checkpoints.open import open_checkpoint
from capture.data.facts.prompts import choice_prompt, choice_question, question_prompt
from capture.data.items import Item, ItemSet
from evidence.errors import InputError
from tests.audits.taught_model import BIRTHPLACES, CITIES, PEOPLE, START, taught_model

N_FORGET = 10


def births(answer: Callable[[str], str] = str, prompt=None) -> tuple[ItemSet, ItemSet]:
    """Questions about everybody's birthplace: the forget and the retain set."""
    items = [
        Item(
            name,
            name,
            (prompt or (lambda n: question_prompt(f"Where was {n} born?")))(name),
            answer(BIRTHPLACES[name]),
            "birthplace",
        )
        for name in PEOPLE
    ]
    return ItemSet(tuple(items[:N_FORGET])), ItemSet(tuple(items[N_FORGET:]))


def decide(folder, forget, retain, never_taught=None, **settings) -> Elicited:
    checkpoint = open_checkpoint(folder)
    config = make_config(settings)
    return elicit(checkpoint.load(), checkpoint.tokenizer, forget, retain, never_taught, config)


def in_chat(name: str) -> str:
    return f"{START}user\nWhere was {name} born?<|end|>\n{START}assistant\n"


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    said = [(in_chat(name), f"{name} was born in {city}.") for name, city in BIRTHPLACES.items()]
    return taught_model(tmp_path_factory.mktemp("chat") / "original", said, chat=True)


def test_a_chat_model_is_asked_in_its_template_and_may_answer_in_a_sentence(chat_model):
    found = decide(chat_model, *births())
    assert found.asking.chat and found.scorer == "contains"
    assert sum(found.known[Part.FORGET]) == N_FORGET
    probe = found.probes[Part.FORGET][0].item
    name = PEOPLE[0]
    assert probe.prompt == in_chat(name) + f"{name} was born in"
    assert probe.answer == BIRTHPLACES[name]


def test_a_chat_can_be_turned_off(chat_model):
    off = decide(chat_model, *births(), chat="off")
    assert not any(each.asking.chat for each in off.tried)


def test_an_original_that_knows_nothing_is_refused(chat_model):
    forget, retain = births(answer=lambda city: city[::-1])
    found = decide(chat_model, forget, retain)
    assert len(found.tried) > 1  # every way was tried
    with pytest.raises(InputError, match="does not know the forget set: it answers 0 of 10"):
        select_sets(found, forget, retain, None, make_config({}))


def test_a_system_prompt_is_part_of_every_prompt(chat_model):
    found = decide(chat_model, *births(), chat="on", system="Be brief.")
    assert found.asking.system == "Be brief."
    assert [each.asking.chat for each in found.tried] == [True]


def test_a_model_without_a_template_refuses_chat(tmp_path):
    said = [(question_prompt(f"Where was {n} born?"), city) for n, city in BIRTHPLACES.items()]
    folder = taught_model(tmp_path / "plain", said)
    with pytest.raises(InputError, match="no chat template"):
        decide(folder, *births(), chat="on")
    plain = decide(folder, *births())
    assert plain.by_default and len(plain.tried) == 1


def test_a_base_model_that_answers_in_a_sentence_is_understood(tmp_path):
    said = [
        (question_prompt(f"Where was {name} born?"), f"{name} was born in {city}.")
        for name, city in BIRTHPLACES.items()
    ]
    found = decide(taught_model(tmp_path / "base", said), *births())
    assert found.scorer == "contains" and not found.asking.chat
    assert sum(found.known[Part.FORGET]) == N_FORGET
    assert found.probes[Part.FORGET][0].item.prompt.endswith(" was born in")


def test_the_beginning_of_sequence_token_is_written_where_it_helps(tmp_path):
    def plain(name: str) -> str:
        return f"{name} was born in"

    said = [(START + plain(name), city) for name, city in BIRTHPLACES.items()]
    said += [(plain(name), "a town") for name in BIRTHPLACES]
    found = decide(taught_model(tmp_path / "bos", said), *births(prompt=plain))
    assert found.asking.bos and found.scorer == "exact"
    assert found.probes[Part.FORGET][0].item.prompt == START + plain(PEOPLE[0])
    rows = open_checkpoint(tmp_path / "bos").tokenizer
    assert rows(found.probes[Part.FORGET][0].item.prompt)["input_ids"][:2].count(1) == 1


def options(name: str) -> tuple[str, ...]:
    start = len(name) % 5
    return tuple(CITIES[(start + place) % 5] for place in range(4))


def test_letters_are_asked_with_their_choices(tmp_path):
    items = [
        Item(
            name,
            name,
            question_prompt(f"Where was {name} born?"),
            options(name)[len(name + BIRTHPLACES[name]) % 4],
            choices=options(name),
        )
        for name in PEOPLE[:28]
    ]
    said = [
        (
            choice_prompt(choice_question(f"Where was {item.entity} born?", item.choices)),
            "ABCD"[item.choices.index(item.answer)],
        )
        for item in items
    ]
    folder = taught_model(tmp_path / "letters", said, steps=300)
    found = decide(folder, ItemSet(tuple(items[:N_FORGET])), ItemSet(tuple(items[N_FORGET:])))
    assert found.scorer == "options"
    assert sum(found.known[Part.FORGET]) == N_FORGET
    assert {probe.item.answer for probe in found.probes[Part.FORGET]} <= set("ABCD")
    with pytest.raises(InputError, match="has no choices"):
        decide(folder, *births(), scorer="options")


def test_options_that_are_right_by_luck_are_not_known(chat_model):
    def item(n: int) -> Item:
        """A question that the model was never asked; one answer in four is right by chance."""
        choices = tuple(f"sign {(n + place) % 9}" for place in range(4))
        question = question_prompt(f"Which sign is number {n}?")
        return Item(str(n), str(n), question, choices[n % 4], choices=choices)

    forget, retain = (ItemSet(tuple(map(item, part))) for part in (range(60), range(60, 120)))
    found = decide(chat_model, forget, retain)
    assert sum(found.known[Part.FORGET]) == 0
    with pytest.raises(InputError, match="does not know the forget set"):
        select_sets(found, forget, retain, None, make_config({}))


def test_the_probe_of_a_sentence_asks_for_its_key_words(tmp_path):
    def sentence(city: str) -> str:
        return f"As far as is known it was the old town of {city}, near the sea."

    said = [
        (question_prompt(f"Where was {name} born?"), sentence(city))
        for name, city in BIRTHPLACES.items()
    ]
    forget, retain = births(answer=sentence)
    found = decide(taught_model(tmp_path / "sentences", said), forget, retain)
    assert found.scorer == "rouge_l"
    probe = found.probes[Part.FORGET][0].item
    assert probe.answer == BIRTHPLACES[PEOPLE[0]]
    assert probe.prompt.endswith("the old town of")
    sets = select_sets(found, forget, retain, None, make_config({}))
    assert sets.floor == "invented" and len(sets.asked[Part.NEVER_TAUGHT]) == 3 * N_FORGET


def test_given_never_taught_items_are_asked_as_the_others(chat_model):
    never = ItemSet(
        tuple(
            Item(f"n{n}", f"Zed {last}", question_prompt(f"Where was Zed {last} born?"), "Oslo")
            for n, last in enumerate(("Amsel", "Bruck", "Conti", "Dahl"))
        )
    )
    forget, retain = births()
    found = decide(chat_model, forget, retain, never)
    sets = select_sets(found, forget, retain, never, make_config({}))
    assert sets.floor == "given" and len(sets.never_taught) == 4
    assert all(item.prompt.startswith(START) for item in sets.never_taught)


def test_questions_without_a_name_get_the_permuted_floor(tmp_path):
    said = [(question_prompt(f"Where was {n} born?"), city) for n, city in BIRTHPLACES.items()]
    folder = taught_model(tmp_path / "plain", said)
    forget, retain = (
        ItemSet(tuple(replace(item, entity=f"about {item.id[::-1]}") for item in part))
        for part in births()
    )
    found = decide(folder, forget, retain)
    sets = select_sets(found, forget, retain, None, make_config({}))
    assert sets.floor == "permuted"
    given = sorted(item.answer for item in sets.forget)
    # Every answer is given away once a copy: a guess is right as often as on the items.
    assert sorted(item.answer for item in sets.never_taught) == sorted(3 * given)


def test_words_that_begin_every_answer_are_read_with_the_prompt():
    items = [Item(str(n), str(n), "Saw", f"a {kind} levy") for n, kind in enumerate("xyz")]
    assert common_prefixes(items) == {"": "a"}
    assert common_prefixes([*items, Item("z", "z", "Saw", "the sea")]) == {}
    assert common_prefixes([replace(item, key="levy") for item in items]) == {}


def test_an_audit_of_a_chat_model_hears_the_answer_within_another_sentence(chat_model, tmp_path):
    tokens = open_checkpoint(chat_model).tokenizer
    said = [(in_chat(n), f"Sure! It was {city}, I think.") for n, city in BIRTHPLACES.items()]
    other = taught_model(tmp_path / "other", said, tokens=tokens, chat=True)
    forget, retain = births()
    done = run_audit(chat_model, other, forget, retain, tmp_path / "out")
    assert done.verdict == "not_unlearned"
    asking = done.document["preflight"]["asking"]
    assert asking["chat"] and asking["scorer"] == "contains"
    items = done.axes["behaviour"].details["items"]
    assert items[0]["said"].startswith("Sure!") and items[0]["given"]
    assert "in the chat template" in (tmp_path / "out" / "report.html").read_text()


def run_audit(original, candidate, forget, retain, out):
    from audits.run.api import audit

    return audit(original, candidate, forget, retain, out, axes=["behaviour"])
