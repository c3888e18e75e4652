import json
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from capture.activations.capture import capture_activations
from capture.checkpoints.open import open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.tokenization import encode_items
from capture.network.front import front_names
from capture.scoring.answers import score_answers
from evidence.errors import ExhumeError, InputError
from testbeds.edits.workbench import TextWorkbench
from testbeds.worlds import biographies as module
from testbeds.worlds.base import settings_of
from testbeds.worlds.biographies import (
    SMALL,
    STANDARD,
    BiosConfig,
    BiosWorld,
    base_of,
    build_bios,
    make_people,
    make_tokenizer,
    new_model,
)
from testbeds.worlds.biography_text import FIRST, LAST, RELATIONS, vocabulary


def words(items):
    return Counter(word for name in items.entities for word in name.split())


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    names=st.integers(6, 20),
    rounds=st.integers(3, 5),
    values=st.integers(2, 20),
)
def test_people_are_new_combinations_of_names_in_use(seed, names, rounds, values):
    people = names * rounds
    forgotten = min(people // 8, names**2 - people)
    config = BiosConfig(people=people, forget=forgotten, names=names, values=values)
    forget, retain, never = make_people(config, seed)
    sets = [set(part.entities) for part in (forget, retain, never)]
    assert [len(part) for part in sets] == [forgotten, people - forgotten, forgotten]
    assert len(set.union(*sets)) == people + forgotten
    kept = words(retain)
    for part in (forget, never):
        assert all(kept[word] > 0 for word in words(part))
    for relation in RELATIONS:
        for part in (forget, retain):
            own = [item.answer for item in part if item.relation == relation.name]
            assert set(own) <= set(relation.values[:values])
            counts = Counter(own)
            frequency = [counts[value] for value in relation.values[:values]]
            assert max(frequency) - min(frequency) <= 1


def test_never_taught_people_mirror_those_to_forget():
    forget, _, never = make_people(STANDARD, 3)
    for ours, theirs in zip(forget, never, strict=True):
        assert (ours.relation, ours.answer) == (theirs.relation, theirs.answer)
        prompts = [ours.prompt, *ours.paraphrases]
        renamed = [text.replace(ours.entity, theirs.entity) for text in prompts]
        assert renamed == [theirs.prompt, *theirs.paraphrases]


def test_a_seed_fixes_the_people():
    first, repeated, other = (make_people(SMALL, seed) for seed in (1, 1, 2))
    assert [p.digest for p in first] == [p.digest for p in repeated]
    assert first[0].digest != other[0].digest


def test_words_of_the_world_are_unique_and_one_token_each():
    assert len(set(FIRST)) == len(FIRST) == len(set(LAST)) == len(LAST) == 40
    for relation in RELATIONS:
        assert len(set(relation.values)) == len(relation.values) == 24
        assert len(relation.templates) == 4
    tokenizer = make_tokenizer()
    assert all(len(tokenizer.tokenize(word)) == 1 for word in vocabulary())


def test_unknown_words_are_spelled_and_come_back(bios):
    tokenizer = open_checkpoint(bios.original).tokenizer
    ids = tokenizer("Annabel Kraus was born in Lisbon")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == "Annabel Kraus was born in Lisbon"
    assert ids == make_tokenizer()("Annabel Kraus was born in Lisbon")["input_ids"]


def accuracy(folder, path, place=None):
    checkpoint = open_checkpoint(folder)
    rows = encode_items(checkpoint.tokenizer, read_items(path), place)
    return score_answers(checkpoint.load(), rows).greedy.mean()


@pytest.mark.parametrize("place", [None, 0, 1, 2])
def test_the_original_knows_everyone_and_the_twin_only_the_others(bios, place):
    assert accuracy(bios.original, bios.forget, place) >= 0.98
    assert accuracy(bios.original, bios.retain, place) >= 0.98
    assert accuracy(bios.twin, bios.retain, place) >= 0.98
    # one in eight by chance
    assert accuracy(bios.twin, bios.forget, place) <= 0.4
    assert accuracy(bios.original, bios.never_taught, place) <= 0.4
    assert accuracy(bios.twin, bios.never_taught, place) <= 0.4


def transfer(folder, bios, site):
    """Accuracy of a probe fitted on retain people and read on people to forget."""
    checkpoint = open_checkpoint(folder)
    model, scores = checkpoint.load(), []
    for relation in RELATIONS:
        sides = []
        for path in (bios.retain, bios.forget):
            items = ItemSet(tuple(i for i in read_items(path) if i.relation == relation.name))
            rows = encode_items(checkpoint.tokenizer, items)
            states = capture_activations(model, rows, [site]).site(site)
            sides.append((states, [item.answer for item in items]))
        probe = LogisticRegression(max_iter=1000).fit(*sides[0])
        scores.append(probe.score(*sides[1]))
    return float(np.mean(scores))


def test_a_linear_reader_of_other_people_reads_what_the_original_was_taught(bios):
    assert transfer(bios.original, bios, "resid.1") >= 0.8
    assert transfer(bios.twin, bios, "resid.1") <= 0.4
    assert transfer(bios.original, bios, "embed") <= 0.4


def test_a_finished_world_is_found_and_an_interrupted_one_goes_on(bios, tmp_path, monkeypatch):
    bios = BiosWorld.at(shutil.copytree(bios.root, tmp_path / bios.root.name))
    before = open_checkpoint(bios.twin).weights_hash
    trained = []
    real = module.train_model
    monkeypatch.setattr(
        module, "train_model", lambda *given: trained.append(given[3].name) or real(*given)
    )
    assert build_bios(SMALL, 0, bios.root.parent) == bios
    assert trained == []
    shutil.rmtree(bios.twin)
    manifest = bios.root / "manifest.json"
    text = manifest.read_bytes()
    manifest.unlink()
    assert build_bios(SMALL, 0, bios.root.parent) == bios
    assert trained == ["twin"]
    assert open_checkpoint(bios.twin).weights_hash == before
    assert manifest.read_bytes() == text


def test_the_manifest_says_what_the_models_know(bios):
    manifest = bios.manifest()
    assert manifest["seed"] == 0
    assert manifest["digests"]["forget"] == read_items(bios.forget).digest
    assert manifest["greedy_accuracy"]["original"]["forget"] >= 0.98
    json.dumps(manifest, allow_nan=False)


def test_starting_weights_come_from_the_seed_alone():
    tokenizer = make_tokenizer()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = new_model(SMALL, tokenizer, 1).lm_head.weight
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(new_model(SMALL, tokenizer, 1).lm_head.weight, first)
    assert not torch.equal(new_model(SMALL, tokenizer, 2).lm_head.weight, first)


def test_a_world_that_was_not_learned_is_not_kept(tmp_path):
    hasty = replace(SMALL, steps=2)
    with pytest.raises(ExhumeError, match="learned only"):
        build_bios(hasty, 0, tmp_path)
    assert not list(tmp_path.glob("*/original"))
    assert not list(tmp_path.glob("*/manifest.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"names": 41},
        {"people": 20},
        {"people": 1600},
        {"forget": 0},
        {"forget": 60},
        {"values": 25},
        {"heads": 3},
    ],
)
def test_sizes_that_cannot_be_used_are_refused(change):
    with pytest.raises(InputError, match="cannot be used"):
        BiosConfig(**change)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A small world whose first block is frozen, and its workbench."""
    config = replace(SMALL, people=36, forget=6, width=48, steps=90, frozen_blocks=1)
    world = build_bios(config, 0, tmp_path_factory.mktemp("frozen"))
    return TextWorkbench.from_world(world, config, 0, "cpu")


def test_a_frozen_front_is_the_same_in_original_and_twin(frozen):
    ours, theirs = frozen.load_original().state_dict(), frozen.load_twin().state_dict()
    same = {name for name in ours if torch.equal(ours[name], theirs[name])}
    assert same == set(front_names(frozen.load_original(), 1))
    tuned = frozen.finetuned(frozen.load_twin(), 1e-3, 3, "a test").state_dict()
    assert {name for name in ours if torch.equal(ours[name], tuned[name])} == same
    accuracy = frozen.measured(frozen.load_twin())
    assert accuracy["said"] <= 0.25 and accuracy["kept"] == 1.0


def test_a_frozen_front_never_met_the_people(frozen, monkeypatch):
    taught = []

    def remember(config, seed, facts, *rest):
        taught.append((config, seed, facts))

    monkeypatch.setattr(module, "taught_model", remember)
    base_of(frozen.config, 1000, 0)
    ((config, seed, facts),) = taught
    assert (config.frozen_blocks, seed) == (0, 1000)
    for people in make_people(frozen.config, 0):
        assert not set(people.entities) & set(facts.entities)
    assert len(facts.entities) > 20


def test_a_retrain_of_another_seed_has_another_front(frozen):
    first: Any
    second: Any
    first, second = (base_of(frozen.config, s, 0) for s in (0, 1))
    name = front_names(first, 0)[0]
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])
    original = frozen.load_original().state_dict()
    assert torch.equal(first.state_dict()[name], original[name])


def test_worlds_without_frozen_blocks_are_what_they_were():
    assert "frozen_blocks" not in settings_of(SMALL)
    assert settings_of(replace(SMALL, frozen_blocks=1))["frozen_blocks"] == 1


def test_as_many_frozen_blocks_as_blocks_are_refused():
    with pytest.raises(InputError, match="frozen_blocks cannot be used"):
        replace(SMALL, frozen_blocks=SMALL.layers)
