import json
import shutil

import pytest
import torch

from capture.checkpoints.open import open_checkpoint
from capture.data.items import Item, ItemSet, read_items
from capture.data.tokenization import encode_items
from erasure.unlearning.config import UnlearnConfig
from evidence.errors import InputError
from testbeds.planted import STATES, UNTRAINED, hold_out, mislabel, plant, read_card, training_rows
from testbeds.recipes import RECIPES, Recipe
from testbeds.worlds.biographies import make_tokenizer

QUICK = Recipe(UnlearnConfig("npo", lr=1e-3, steps=2, batch_size=8))


def tensors(folder):
    return open_checkpoint(folder).load().state_dict()


def test_the_untouched_copy_has_the_very_weights(bios, tmp_path):
    copy = plant(bios, "noop", seed=0, out=tmp_path / "noop")
    original, planted = open_checkpoint(bios.original), open_checkpoint(copy)
    assert planted.weights_hash == original.weights_hash
    assert planted.tokenizer.get_vocab() == original.tokenizer.get_vocab()
    assert read_card(copy)["state"] == "not_unlearned"


def test_the_suppression_is_in_the_last_block_alone(bios, planted):
    folder = planted("last_block_relabel")
    before, after = tensors(bios.original), tensors(folder)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    card = read_card(folder)
    assert card["state"] == "suppressed"
    measured = card["measured"]
    assert measured["forget"] == {"prompt": 0.0, "paraphrases": 0.0}
    assert min(measured["retain"].values()) >= 0.95


def test_the_collapse_leaves_nothing(planted):
    card = read_card(planted("collapse"))
    assert card["state"] == "damaged"
    assert card["measured"]["retain"]["prompt"] <= 0.4


def test_states_that_are_not_known_by_construction_are_left_open():
    # The zoo has recipes for more methods than can be planted on their own.
    assert set(STATES) - set(UNTRAINED) <= set(RECIPES["bios"])
    assert {"npo", "last_block_relabel", "collapse"} <= set(RECIPES["capitals"])
    for family in RECIPES.values():
        for kind, recipe in family.items():
            method = "grad_ascent" if kind == "collapse" else kind
            assert recipe.config.method == method
    known = {kind for kind, state in STATES.items() if state is not None}
    assert known == {"noop", "last_block_relabel", "embedding_redirect", "collapse"}


def test_a_planted_model_is_found_again_and_nothing_else_is(bios, tmp_path):
    out = tmp_path / "planted"
    plant(bios, "npo", seed=0, out=out, recipe=QUICK)
    card = (out / "card.json").read_bytes()
    weights = open_checkpoint(out).weights_hash
    stamp = (out / "card.json").stat().st_mtime_ns
    assert plant(bios, "npo", seed=0, out=out, recipe=QUICK) == out
    assert (out / "card.json").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match="another planted model"):
        plant(bios, "npo", seed=1, out=out, recipe=QUICK)
    shutil.rmtree(out)
    plant(bios, "npo", seed=0, out=out, recipe=QUICK)
    assert open_checkpoint(out).weights_hash == weights
    assert (out / "card.json").read_bytes() == card


def test_a_folder_with_something_else_is_left_alone(bios, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(InputError, match="not a planted model"):
        plant(bios, "noop", seed=0, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_failed_run_leaves_no_folder(bios, tmp_path, monkeypatch):
    monkeypatch.setattr("testbeds.planted.unlearn_", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plant(bios, "npo", seed=0, out=tmp_path / "planted", recipe=QUICK)
    assert not list(tmp_path.iterdir())


def test_unknown_kinds_are_refused(bios, tmp_path):
    with pytest.raises(InputError, match="cannot be planted"):
        plant(bios, "lobotomy", seed=0, out=tmp_path / "planted")


def test_kinds_without_settings_ask_for_a_recipe(bios, tmp_path, monkeypatch):
    monkeypatch.delitem(RECIPES["bios"], "rmu")
    with pytest.raises(InputError, match="no settings for rmu"):
        plant(bios, "rmu", seed=0, out=tmp_path / "planted")


def test_wrong_answers_are_wrong_and_of_the_same_kind(bios):
    forget, retain = read_items(bios.forget), read_items(bios.retain)
    wrong = mislabel(forget, retain, 0)
    offered = {}
    for item in retain:
        offered.setdefault(item.relation, set()).add(item.answer)
    for ours, theirs in zip(forget, wrong, strict=True):
        assert theirs.answer != ours.answer
        assert theirs.answer in offered[ours.relation]
        assert (theirs.prompt, theirs.paraphrases) == (ours.prompt, ours.paraphrases)
    assert mislabel(forget, retain, 0).digest == wrong.digest
    assert mislabel(forget, retain, 1).digest != wrong.digest


def test_one_answer_for_all_leaves_no_wrong_one():
    items = ItemSet((Item("a", "Ann", "Ann is", "tall"), Item("b", "Bo", "Bo is", "tall")))
    with pytest.raises(InputError, match="no wrong answer"):
        mislabel(items, items, 0)


def test_held_out_entities_are_in_no_training_row(bios):
    forget, retain = read_items(bios.forget), read_items(bios.retain)
    facts = hold_out(forget, retain, 1 / 3, 0)
    assert facts.held_out is not None
    assert len(facts.held_out.entities) == round(len(retain.entities) / 3)
    assert not set(facts.held_out.entities) & set(facts.retain.entities)
    assert len(facts.held_out) + len(facts.retain) == len(retain)
    assert hold_out(forget, retain, 0.0, 0).held_out is None


def test_a_recipe_says_which_prompts_are_trained(bios):
    tokenizer, items = make_tokenizer(), read_items(bios.forget)
    config = QUICK.config
    assert training_rows(tokenizer, items, Recipe(config)) == encode_items(tokenizer, items)
    whole = training_rows(tokenizer, items, Recipe(config, paraphrases=True))
    assert len(whole) == 4 * len(items)
    more = training_rows(tokenizer, items, Recipe(config, templates=("See {} as a",)))
    assert len(more) == 2 * len(items)
    first = items.items[0]
    text = tokenizer.decode(list(more.ids[len(items)]))
    assert text == f"See {first.entity} as a {first.answer}"


def test_cards_are_json_with_the_curves(bios, tmp_path):
    folder = plant(bios, "npo", seed=0, out=tmp_path / "planted", recipe=QUICK)
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in card["log"]] == [1.0, 2.0]
    assert card["recipe"]["config"]["method"] == "npo"
    assert card["state"] is None
    assert card["original"] == open_checkpoint(bios.original).weights_hash
