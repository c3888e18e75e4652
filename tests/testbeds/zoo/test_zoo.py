"""The zoo's models are what their cards say."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.network.structure import find_blocks
from evidence.errors import ExhumeError, InputError
from testbeds.edits import damage, late_layers, retrains, workbench
from testbeds.worlds.biographies import SMALL, all_prompts, make_people, make_tokenizer
from testbeds.zoo import build as module
from testbeds.zoo.build import build_zoo, split
from testbeds.zoo.kinds import KINDS
from testbeds.zoo.registry import WORLDS

# One retrain from other weights shows as much as two; closed forms and the edits of other files
# have tests of their own.
SURE = [
    name
    for name, kind in KINDS.items()
    if kind.state
    and kind.edit.__module__ in (damage.__name__, late_layers.__name__, retrains.__name__)
    and name not in ("retrain_2", "retrain_3", "retrain_4")
    and name not in ("logit_mask", "answer_direction", "late_rotation")
]


@pytest.fixture(scope="module")
def place(small_zoo, tmp_path_factory):
    """Cards are altered here: only the world is that of other tests."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "worlds").symlink_to(small_zoo / "worlds")
    return root


@pytest.fixture(scope="module")
def specimens(place):
    made = build_zoo(place, seeds=[0], only=SURE, config=SMALL)
    return {each.kind: each for each in made}


def states_before_the_last_block(folder, world):
    model = open_checkpoint(folder).load()
    rows = all_prompts(make_tokenizer(), read_items(world.forget))
    seen = []
    last = find_blocks(model)[-1]
    last.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for ids in rows.ids[:10]:
            model(torch.tensor([ids]))
    return seen


def test_every_state_has_models(specimens):
    assert {each.state for each in specimens.values()} == {
        "not_unlearned",
        "suppressed",
        "deleted",
        "damaged",
    }


def test_models_show_what_their_kind_must_show(specimens):
    for each in specimens.values():
        shown, kind = each.card["measured"], KINDS[each.kind]
        assert kind.forget_range[0] <= shown["said"] <= kind.forget_range[1], each.name
        assert kind.retain_range[0] <= shown["kept"] <= kind.retain_range[1], each.name
        assert each.card["why"] and each.card["made"]
        assert each.card["weights"] == open_checkpoint(each.model).weights_hash


def test_suppressed_models_have_the_originals_states_before_the_last_block(specimens):
    for each in specimens.values():
        if each.state == "suppressed":
            ours = states_before_the_last_block(each.model, each.world)
            theirs = states_before_the_last_block(each.world.original, each.world)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            assert each.card["weights"] != each.card["original"]


def test_deleted_models_are_no_children_of_the_original(specimens):
    deleted = [each for each in specimens.values() if each.state == "deleted"]
    assert {"twin", "retrain_1", "retrain_pretrained"} <= {e.kind for e in deleted}
    assert len({each.card["weights"] for each in deleted}) == len(deleted)
    for each in deleted:
        ours = open_checkpoint(each.model).load().state_dict()
        theirs = open_checkpoint(each.world.original).load().state_dict()
        norm = sum(float((ours[k] - theirs[k]).norm()) for k in ours)
        assert norm > 1.0


def test_a_pretrained_base_never_held_the_facts(monkeypatch):
    taught = []

    def remember(config, seed, facts, *rest):
        taught.append(facts)
        return torch.nn.Linear(1, 1)

    monkeypatch.setattr(workbench, "taught_model", remember)
    monkeypatch.setattr(workbench.TextWorkbench, "finetuned", lambda self, model, *rest: model)
    forget, retain, _ = make_people(SMALL, 0)
    unused: Any = None
    ground = workbench.TextWorkbench(SMALL, 0, unused, unused, forget, retain)
    next(retrains.retrain_pretrained(ground))
    (base,) = taught
    assert base.entities and not set(base.entities) & set(forget.entities)
    # It knows others than those that are to stay.
    assert set(base.entities) - set(retain.entities)


def test_what_is_made_is_not_made_again(place, specimens, monkeypatch):
    monkeypatch.setattr(module, "_first_in_range", None)
    rebuilt = build_zoo(place, seeds=[0], only=SURE, config=SMALL)
    assert [each.card for each in rebuilt] == [each.card for each in specimens.values()]


def test_the_manifest_lists_every_model(place, specimens):
    listed = json.loads((place / "manifest.json").read_text())["models"]
    assert {each.name for each in specimens.values()} <= set(listed)
    for each in specimens.values():
        assert listed[each.name]["weights"] == each.card["weights"]
        assert listed[each.name]["state"] == each.state


def test_a_model_cut_off_before_its_hash_is_made_again(place, specimens):
    card = specimens["noise"].model / "card.json"
    whole = json.loads(card.read_text())
    card.write_text(json.dumps({k: v for k, v in whole.items() if k != "weights"}))
    (rebuilt,) = build_zoo(place, seeds=[0], only=["noise"], config=SMALL)
    assert rebuilt.card == whole


def test_another_model_in_the_place_is_refused(place, specimens):
    card = specimens["twin"].model / "card.json"
    whole = card.read_text()
    card.write_text(json.dumps(json.loads(whole) | {"seed": 7}))
    try:
        with pytest.raises(InputError, match="another planted model"):
            build_zoo(place, seeds=[0], only=["twin"], config=SMALL)
    finally:
        card.write_text(whole)


def test_a_model_that_does_not_show_its_state_is_an_error(small_zoo, tmp_path, monkeypatch):
    (tmp_path / "worlds").symlink_to(small_zoo / "worlds")
    kind = KINDS["random_init"]
    monkeypatch.setitem(KINDS, "random_init", replace(kind, retain_range=(0.99, 1.0)))
    with pytest.raises(ExhumeError, match="no random_init was made for seed 0"):
        build_zoo(tmp_path, seeds=[0], only=["random_init"], config=SMALL)
    assert not list(tmp_path.glob("models/*-0-random_init"))


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_other_families_learn_and_are_suppressed(place, family):
    made = build_zoo(
        place, seeds=[0], families=[family], only=["untouched", "last_block_relabel"], config=SMALL
    )
    assert made[0].card["measured"] == {"said": 1.0, "kept": 1.0}
    assert made[1].card["measured"]["said"] <= 0.1
    assert family in open_checkpoint(made[1].model).config["model_type"]


@pytest.mark.parametrize("wrong", [{"only": ["nothing"]}, {"families": ["rnn"]}])
def test_unknown_names_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="in the zoo"):
        build_zoo(tmp_path, seeds=[0], **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", ["bios", "bios_frozen"])
def test_no_model_is_in_both_parts(world):
    parts, known = split(world), set(WORLDS[world].kinds)
    assert not set(parts["tuning"]["seeds"]) & set(parts["held_out"]["seeds"])
    for name in ("tuning", "held_out"):
        assert set(parts[name]["kinds"]) <= known
    assert {*parts["tuning"]["kinds"], *parts["held_out"]["kinds"]} == known
    # Some kinds and families are never tuned on.
    assert known - set(parts["tuning"]["kinds"])
    assert set(parts["held_out"]["families"]) - set(parts["tuning"]["families"])
