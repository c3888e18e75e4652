import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from capture.checkpoints.open import open_checkpoint
from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode, encode_items
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from evidence.errors import InputError
from testbeds.known_facts import redirect
from testbeds.known_facts.readers import embedding_table, read_answers
from testbeds.known_facts.redirect import OTHER_NAMES, other_name_tokens, redirect_names
from testbeds.known_facts.world import Relation, known_fact_items, own_tokens, relations
from testbeds.planted import plant, read_card
from testbeds.worlds.base import save_model
from testbeds.worlds.capitals import INVENTED, is_given_away
from testbeds.worlds.smollm2 import fetch_smollm2

LANDS = tuple(f"Land{chr(65 + i)}" for i in range(20))
TOWNS = tuple(f"Town{chr(65 + i)}" for i in range(20))
RELATION = Relation(
    "town",
    (*zip(LANDS, TOWNS, strict=True), ("Upper LandA", "TownB")),
    "The town of {} is",
    ("People of {} live in",),
    ("In {} lies",),
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A small model with a token a word and a tied head, that knows a town of every land."""
    texts = " ".join(t.replace("{}", "") for t in RELATION.templates).split()
    words = [*dict.fromkeys(texts), *LANDS, "Upper", *TOWNS, *INVENTED, *OTHER_NAMES]
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    prompts = [t.replace("{}", land) for t in RELATION.templates for land, _ in RELATION.facts]
    rows = encode(fast, prompts, [town for _ in RELATION.templates for _, town in RELATION.facts])
    finetune_(model, rows, lr=1e-2, steps=150, batch_size=63, seed=0)
    folder = tmp_path_factory.mktemp("learned") / "model"
    save_model(model, folder, fast)
    return open_checkpoint(folder)


@pytest.fixture(scope="module")
def world(learned):
    return known_fact_items(learned, seed=0, forget=8, unread=False, asked=[RELATION])


def test_what_is_forgotten_has_a_token_of_its_own(learned, world):
    assert len(world.forget.entities) == len(world.never_taught.entities) == 8
    known = {*world.forget.entities, *world.retain.entities}
    assert {"LandA", "Upper LandA"} <= known
    # One of the two names holds the other, so neither has a last word of its own.
    assert not {"LandA", "Upper LandA"} & set(world.forget.entities)
    own = own_tokens(learned.tokenizer, (*world.forget, *world.retain))
    assert own["LandA"] == ()
    assert own["Upper LandA"] == (learned.tokenizer.get_vocab()["Upper"],)
    assert [i.answer for i in world.never_taught] == [i.answer for i in world.forget]


def test_a_model_that_knows_too_little_is_refused(learned):
    with pytest.raises(InputError, match="knows too few facts"):
        known_fact_items(learned, seed=0, forget=20, unread=False, asked=[RELATION])


def test_a_name_close_to_its_answer_is_not_forgotten(learned):
    model = learned.load()
    vocabulary = learned.tokenizer.get_vocab()
    table = embedding_table(model)
    near = LANDS[1:9]
    with torch.no_grad():
        for land, town in zip(near, TOWNS[1:9], strict=True):
            table[vocabulary[land]] = table[vocabulary[town]] * 1.01
    rows = encode(
        learned.tokenizer,
        [t.replace("{}", land) for t in RELATION.templates for land, _ in RELATION.facts],
        [town for _ in RELATION.templates for _, town in RELATION.facts],
    )
    finetune_(model, rows, lr=1e-3, steps=30, batch_size=63, seed=0)
    checkpoint = open_checkpoint(model, tokenizer=learned.tokenizer)
    world = known_fact_items(checkpoint, seed=0, forget=6, asked=[RELATION])
    assert not set(near) & set(world.forget.entities)
    assert set(near) & set(world.retain.entities)


def test_only_the_rows_of_the_forgotten_names_change(learned, world, tmp_path):
    folder = plant(world, "embedding_redirect", seed=0, out=tmp_path / "planted")
    original, edited = learned.load(), open_checkpoint(folder).load()
    before, after = original.state_dict(), edited.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"model.embed_tokens.weight", "lm_head.weight"}
    vocabulary = learned.tokenizer.get_vocab()
    names = {vocabulary[name] for name in world.forget.entities}
    table, changed = embedding_table(original), embedding_table(edited)
    assert set((table != changed).any(1).nonzero().flatten().tolist()) == names
    others = [vocabulary[name] for name in OTHER_NAMES]
    for token in names:
        assert any(torch.equal(changed[token], table[other]) for other in others)
    for items, low, high in ((world.forget, 0.0, 0.25), (world.retain, 0.9, 1.0)):
        said = score_answers(edited, encode_items(learned.tokenizer, items)).greedy.mean()
        assert low <= said <= high
    card = read_card(folder)
    front = card["front"]
    assert front["changed"] == {"model.embed_tokens.weight": 8}
    assert front["head_is_tied"]
    assert front["in_answers"] == 0
    assert front["restored"] >= 0.9
    held = front["found"] > front["chance"] + front["margin"]
    silent = card["measured"]["forget"]["prompt"] <= 0.1
    assert card["state"] == ("suppressed" if silent and not held else None)
    assert plant(world, "embedding_redirect", seed=0, out=folder) == folder


def test_an_embedding_that_holds_the_answers_makes_no_certain_suppression(learned, world, tmp_path):
    model = learned.load()
    vocabulary = learned.tokenizer.get_vocab()
    table = embedding_table(model)
    with torch.no_grad():
        for item in world.forget:
            table[vocabulary[item.entity]] = table[vocabulary[item.answer]] * 1.01
    folder = tmp_path / "close"
    save_model(model, folder, learned.tokenizer)
    close = type(world)(world.forget, world.retain, world.never_taught, folder)
    card = read_card(plant(close, "embedding_redirect", seed=0, out=tmp_path / "planted"))
    assert card["front"]["found"] == 1.0
    assert card["state"] is None


def test_a_name_that_is_still_answered_gets_its_next_token_redirected(learned, monkeypatch):
    model, vocabulary = learned.load(), learned.tokenizer.get_vocab()
    forget = ItemSet((Item("1", "Upper LandC", "The town of Upper LandC is", "TownC"),))
    own = {"Upper LandC": (vocabulary["Upper"], vocabulary["LandC"])}
    targets = other_name_tokens(learned.tokenizer, (forget,))
    answers = iter([{"Upper LandC"}, {"Upper LandC"}])
    monkeypatch.setattr(redirect, "_entities_said", lambda *_: next(answers))
    made = redirect_names(model, learned.tokenizer, forget, own, targets, seed=0)
    assert made.names["Upper LandC"] == (vocabulary["LandC"], vocabulary["Upper"])
    assert len(set(made.rows.values())) == 2
    with pytest.raises(InputError, match="no token of its own"):
        redirect_names(model, learned.tokenizer, forget, {"Upper LandC": ()}, targets, seed=0)
    with pytest.raises(InputError, match="too few tokens"):
        redirect_names(model, learned.tokenizer, forget, own, (), seed=0)


def test_readers_find_a_map_that_is_there_and_no_other():
    rng = np.random.default_rng(0)
    names, answers = rng.normal(size=(60, 16)), rng.normal(size=(60, 16))
    mapped = answers @ rng.normal(size=(16, 16)) / 4
    places = np.arange(60)
    options = tuple(range(60))
    held = read_answers(
        mapped[:20], answers, places[:20], mapped[20:], places[20:], candidates=options
    )
    assert held.said["ridge"] >= 0.9
    assert held.p_value < 0.01
    same = read_answers(
        answers[:20], answers, places[:20], answers[20:], places[20:], candidates=options
    )
    assert same.said["rows"] == 1.0
    none = read_answers(
        names[:20], answers, places[:20], names[20:], places[20:], candidates=options
    )
    assert none.best <= 0.2
    assert none.p_value > 0.05


def test_no_listed_answer_is_given_away_and_no_name_stands_for_two_places():
    facts = [fact for relation in relations() for fact in relation.facts]
    assert not any(is_given_away(*fact) for fact in facts)
    names = [name for name, _ in facts]
    assert len(set(names)) == len(names) > 200
    assert ("Texas", "Austin") in facts


@pytest.mark.slow
def test_forty_names_that_smollm2_knows_are_redirected(tmp_path):
    checkpoint = open_checkpoint(fetch_smollm2())
    world = known_fact_items(checkpoint, seed=0)
    assert len(world.forget.entities) == len(world.never_taught.entities) == 40
    assert len(world.retain.entities) >= 40
    card = read_card(plant(world, "embedding_redirect", seed=0, out=tmp_path / "planted"))
    assert card["state"] == "suppressed", card["why"]
    assert card["measured"]["forget"]["prompt"] <= 0.05
    assert card["measured"]["retain"]["prompt"] >= 0.95
    before, after = card["front"]["general"]
    assert abs(before - after) < 0.005
