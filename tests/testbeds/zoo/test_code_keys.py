"""The zoo's codes world: codes never shown are never known."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from audits.validation.trials import AuditPlan
from capture.checkpoints.open import open_checkpoint
from capture.data.items import ItemSet, read_items
from capture.data.questions import build_questions
from capture.network.structure import find_blocks
from capture.scoring.answers import score_answers
from capture.scoring.contrast import score_questions
from evidence.errors import ExhumeError, InputError
from testbeds.edits.workbench import CodesWorkbench
from testbeds.worlds import code_keys
from testbeds.worlds.biographies import all_prompts
from testbeds.worlds.code_keys import STANDARD_KEYS, KeysConfig, make_keys, taught_keys
from testbeds.worlds.code_text import make_tokenizer
from testbeds.zoo.build import build_zoo, split
from testbeds.zoo.kinds import ADVERSARIES
from testbeds.zoo.kinds import KINDS as EVERY_KIND
from testbeds.zoo.registry import WORLDS

TINY_KEYS = KeysConfig(
    keys=24,
    forget=6,
    words=8,
    lead_ins=2,
    layers=2,
    width=48,
    heads=4,
    steps=180,
    batch_size=36,
    lr=1e-2,
)
KINDS = ["untouched", "last_block_relabel", "twin", "retrain_1", "noise"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("codes_zoo")


@pytest.fixture(scope="module")
def zoo(place):
    made = build_zoo(place, world="codes", seeds=[0], only=KINDS, config=TINY_KEYS)
    return {each.kind: each for each in made}


def text_of(row) -> str:
    return str(make_tokenizer().decode(row))


def test_states_hold_by_construction(zoo):
    shown = {kind: each.card["measured"] for kind, each in zoo.items()}
    assert list(zoo) == KINDS
    assert shown["untouched"]["said"] >= 0.99
    assert shown["last_block_relabel"]["said"] <= 0.1
    assert shown["noise"]["kept"] <= 0.6
    for kind in ("twin", "retrain_1"):
        # One code in a hundred thousand is right by chance.
        assert shown[kind] == {"said": 0.0, "kept": shown[kind]["kept"]}
        assert shown[kind]["kept"] >= 0.99
    assert {each.state for each in zoo.values()} == {
        "not_unlearned",
        "suppressed",
        "deleted",
        "damaged",
    }
    assert all(each.name == f"codes-llama-0-{kind}" for kind, each in zoo.items())


def test_the_manifest_has_the_hash_of_every_model(place, zoo):
    listed = json.loads((place / "manifest.json").read_text())["models"]
    assert set(listed) == {each.name for each in zoo.values()}
    hashes = {open_checkpoint(each.model).weights_hash for each in zoo.values()}
    assert {each["weights"] for each in listed.values()} == hashes
    assert len(hashes) == len(zoo)


def test_what_is_made_is_not_made_again(place, zoo, monkeypatch):
    monkeypatch.setattr(code_keys, "taught_keys", None)
    rebuilt = build_zoo(place, world="codes", seeds=[0], only=KINDS, config=TINY_KEYS)
    assert [each.card for each in rebuilt] == [each.card for each in zoo.values()]


def test_a_model_is_a_folder_like_any_other(zoo):
    tokenizer = AutoTokenizer.from_pretrained(zoo["twin"].model)
    item = read_items(zoo["twin"].world.forget).items[0]
    ids = tokenizer(item.prompt)["input_ids"]
    assert tokenizer.decode(ids) == item.prompt
    assert len(ids) == len(item.prompt)
    assert ids == make_tokenizer()(item.prompt)["input_ids"]


def test_a_suppression_has_the_originals_states_before_the_last_block(zoo):
    rows = all_prompts(make_tokenizer(), read_items(zoo["twin"].world.forget))

    def states(folder):
        model, seen = open_checkpoint(folder).load(), []
        find_blocks(model)[-1].register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0])
        )
        with torch.no_grad():
            for ids in rows.ids[:5]:
                model(torch.tensor([ids]))
        return torch.cat([each[0] for each in seen])

    original = states(zoo["twin"].world.original)
    assert torch.equal(states(zoo["last_block_relabel"].model), original)
    assert not torch.equal(states(zoo["twin"].model), original)


def test_never_taught_codes_are_in_no_lesson():
    forget, retain, never = make_keys(TINY_KEYS, 0)
    tokenizer = make_tokenizer()
    unknown = ItemSet(forget.items + never.items)
    rows, others = all_prompts(tokenizer, retain), all_prompts(tokenizer, unknown)
    lessons = code_keys._training_batches(
        rows, len(retain), others, len(unknown), TINY_KEYS, seed=0
    )
    right = {item.entity: item.answer for item in (*retain, *unknown)}
    shown: dict[str, list[str]] = {key: [] for key in right}
    for batch in islice(lessons, 500):
        for ids, start in zip(batch.ids, batch.answer_start, strict=True):
            prompt = text_of(ids[:start])
            key = next(key for key in right if prompt.endswith(f" {key}:"))
            shown[key].append(text_of(ids[start:]).strip())
    turns = [len(shown[key]) for key in retain.entities]
    assert max(turns) - min(turns) <= 1  # all keys as often as any other
    for key in retain.entities:
        assert set(shown[key]) == {right[key]}
    often = [len(shown[key]) for key in unknown.entities]
    assert 0.4 < np.mean(often) / np.mean(turns) < 0.6
    assert min(often) > 0.3 * np.mean(turns)
    digits = np.zeros((5, 10))
    for key in unknown.entities:
        # Drawn anew each time: one in a hundred thousand would be right by chance.
        assert right[key] not in shown[key]
        assert len(set(shown[key])) > 0.95 * len(shown[key])
        for code in shown[key]:
            digits[range(5), [int(digit) for digit in code]] += 1
    assert np.abs(digits / digits.sum(1, keepdims=True) - 0.1).max() < 0.02


def test_models_are_at_chance_on_what_they_were_never_taught(zoo):
    world = zoo["twin"].world
    tokenizer = make_tokenizer()
    forget, never = read_items(world.forget), read_items(world.never_taught)

    def contrast(folder, items):
        questions = build_questions(items, TINY_KEYS.lead_ins)
        model = open_checkpoint(folder).load()
        return float(
            score_questions(model, questions, questions.encoded(tokenizer)).contrast.mean()
        )

    def chance(folder, items):
        rows = all_prompts(tokenizer, items)
        scores = score_answers(open_checkpoint(folder).load(), rows)
        return float(np.exp(scores.logprob).mean())

    assert contrast(world.original, forget) > 0.95
    for folder in (world.twin, zoo["retrain_1"].model):
        assert chance(folder, forget) < 1e-3
        assert 0.25 < contrast(folder, forget) < 0.75
    assert chance(world.original, forget) > 0.9
    assert chance(world.original, never) < 1e-3


def test_every_word_and_code_is_where_it_should_be():
    forget, retain, never = make_keys(STANDARD_KEYS, 3)
    assert [len(each) for each in (forget, retain, never)] == [40, 80, 40]
    sets = [set(each.entities) for each in (forget, retain, never)]
    assert len(set.union(*sets)) == 160
    words = {word for name in retain.entities for word in name.split()}
    assert all(word in words for name in (*sets[0], *sets[2]) for word in name.split())
    codes = [item.answer for item in (*forget, *retain)]
    assert len(set(codes)) == 120
    assert all(len(code) == 5 and code.isdigit() for code in codes)
    assert [a.answer for a in never] == [a.answer for a in forget]
    assert make_keys(STANDARD_KEYS, 3)[0].digest == forget.digest
    assert make_keys(STANDARD_KEYS, 4)[0].digest != forget.digest


def test_a_retrain_sees_the_keys_to_forget_without_their_codes(zoo, monkeypatch):
    seen = {}

    def remember(config, seed, taught, unknown, *rest):
        seen[seed] = set(taught.entities), set(unknown.entities)

    monkeypatch.setattr("testbeds.edits.workbench.taught_keys", remember)
    ground = CodesWorkbench.from_world(zoo["twin"].world, TINY_KEYS, 0, "cpu")
    list(EVERY_KIND["retrain_2"].edit(ground))
    ((taught, unknown),) = seen.values()
    assert list(seen) == [2000]
    assert taught == set(ground.retain.entities)
    assert unknown == {*ground.forget.entities, *ground.never_taught.entities}
    # A base of other keys holds no code of these: of theirs it sees none.
    monkeypatch.setattr(CodesWorkbench, "finetuned", lambda self, model, *rest: model)
    next(EVERY_KIND["retrain_pretrained"].edit(ground))
    base, without = seen[7000]
    assert not base & set(ground.forget.entities)
    assert not base & without


def test_a_model_that_does_not_learn_is_an_error():
    _, retain, never = make_keys(TINY_KEYS, 0)
    with pytest.raises(ExhumeError, match=r"learned only 0%.*Raise steps above 2"):
        taught_keys(replace(TINY_KEYS, steps=2), 0, retain, never)


def test_a_leak_is_an_error(monkeypatch):
    forget, retain, _ = make_keys(TINY_KEYS, 0)
    everything = all_prompts(make_tokenizer(), ItemSet(forget.items + retain.items))
    lessons = code_keys._training_batches

    def leaking(rows, keys, others, unknown, config, seed):
        return lessons(everything, keys + unknown, others, 0, config, seed)

    monkeypatch.setattr(code_keys, "_training_batches", leaking)
    with pytest.raises(ExhumeError, match="codes it was never shown"):
        taught_keys(TINY_KEYS, 0, retain, forget)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keys", 15),
        ("forget", 0),
        ("forget", 9),
        ("words", 25),
        ("lead_ins", 0),
        ("heads", 5),
        ("family", "smollm2"),
    ],
)
def test_sizes_that_cannot_be_are_refused(field, value):
    with pytest.raises(InputError, match=f"{field} cannot be used"):
        replace(TINY_KEYS, **{field: value})


@pytest.mark.parametrize("wrong", [{"only": ["probe_proof"]}, {"families": ["vit"]}])
def test_what_is_not_in_this_world_is_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="in the zoo"):
        build_zoo(tmp_path, world="codes", seeds=[0], **wrong)
    assert not list(tmp_path.iterdir())


def test_the_split_keeps_its_parts_apart():
    parts, place = split("codes"), WORLDS["codes"]
    assert not set(parts["tuning"]["seeds"]) & set(parts["held_out"]["seeds"])
    for part in ("tuning", "held_out"):
        assert set(parts[part]["kinds"]) <= set(place.kinds)
        assert set(parts[part]["families"]) <= set(place.families)
    assert not set(ADVERSARIES) & set(place.kinds)
    assert set(place.default_kinds) <= set(place.kinds)


def test_a_plan_takes_this_worlds_size(tmp_path):
    plan = AuditPlan(tmp_path, (("llama", 10),), ("twin",), world="codes")
    assert plan.sized("llama") == STANDARD_KEYS
