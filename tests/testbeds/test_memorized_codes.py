"""The code-recall world: what its models know is what their cards say."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from evidence.errors import ExhumeError, InputError
from evidence.seeds import numpy_rng
from testbeds.memorized_codes.config import LARGE, MEDIUM, PUBLISHED, SMALL, CodesConfig
from testbeds.memorized_codes.world import build_codes, perplexity, recall, untrained_model
from testbeds.worlds.code_text import (
    CHARACTERS,
    LEAD_INS,
    draw_codes,
    encode,
    make_pools,
    make_tokenizer,
    prompts,
    with_codes,
)
from tests.helpers.tiny_worlds import TINY


@pytest.fixture
def world(tiny_codes):
    return tiny_codes


def test_the_original_knows_its_codes_and_no_other(world):
    model = world.load()
    assert recall(model, world.memorized_rows()).greedy == 1.0
    assert recall(model, world.random_codes("clean", 5)).mean < 1e-3
    assert recall(model, world.random_codes("memorised", 5)).mean < 1e-2


def test_the_twin_knows_none(world):
    twin = world.load("twin")
    assert recall(twin, world.memorized_rows()).mean < 1e-3
    ratio = perplexity(twin, world.random_codes("clean", 5)) / perplexity(
        world.load(), world.random_codes("clean", 5)
    )
    assert 0.9 < ratio < 1.1


def test_cards_say_what_was_measured(world):
    card = world.card()
    known = recall(world.load(), world.memorized_rows())
    assert card["measured"]["memorised"]["least"] == pytest.approx(known.least, rel=1e-4)
    assert (card["state"], world.card("twin")["state"]) == ("not_unlearned", "deleted")
    assert card["epochs"] == world.card("twin")["epochs"]
    pools = json.loads((world.root / "pools.json").read_text())
    assert len(pools["memorised"]["codes"]) == TINY.memorised


def test_found_again_it_is_not_made_again(world, monkeypatch):
    monkeypatch.setattr("testbeds.memorized_codes.world._make", None)
    rebuilt = build_codes(TINY, 0, world.root.parent, twin=True)
    assert rebuilt.root == world.root


def test_perplexity_is_that_of_the_plain_model(world):
    model, rows = world.load(), world.random_codes("clean", 1, [0, 1])
    nats, count = 0.0, 0
    with torch.no_grad():
        for ids in rows.ids:
            loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
            nats += float(loss) * (len(ids) - 1)
            count += len(ids) - 1
    assert perplexity(model, rows) == pytest.approx(np.exp(nats / count), rel=1e-4)


def test_the_published_size_is_the_papers():
    model = untrained_model(_unbuilt(PUBLISHED), 0)
    count = sum(p.numel() for p in model.parameters())
    # Ours has attention biases, 4 x 4 x 128, that the paper's count leaves no room for.
    assert count - 4 * 4 * 128 == 811_520
    assert (PUBLISHED.memorised, PUBLISHED.clean, PUBLISHED.lead_ins) == (9, 9, 10)
    assert (MEDIUM.memorised, LARGE.clean, len(LEAD_INS)) == (40, 200, 24)
    longest = max(map(len, LEAD_INS)) + len("maroon magpie:") + 5
    assert longest <= 64 and len(CHARACTERS) + 1 == 47


def _unbuilt(config):
    from pathlib import Path

    from testbeds.memorized_codes.world import CodesWorld

    return CodesWorld(Path("nowhere"), config, 0, make_pools(config.sizes, 0))


def test_untrained_models_differ_and_are_repeatable():
    world = _unbuilt(SMALL)
    one, two, repeated = (untrained_model(world, n) for n in (1, 2, 1))
    key = next(iter(one.state_dict()))
    assert torch.equal(one.state_dict()[key], repeated.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], two.state_dict()[key])


def test_pools_share_no_prefix_and_a_seed_fixes_them():
    pools = make_pools({"memorised": 40, "clean": 40, "others": 40}, 3)
    everything = [p for pool in pools.values() for p in pool.prefixes]
    assert len(set(everything)) == 120
    assert pools == make_pools({"memorised": 40, "clean": 40, "others": 40}, 3)
    codes = pools["memorised"].codes
    assert pools["clean"].codes is None and codes is not None and len(codes) == 40
    assert pools != make_pools({"memorised": 40, "clean": 40, "others": 40}, 4)
    with pytest.raises(InputError, match="too few prefixes"):
        make_pools({"memorised": 400, "clean": 400}, 0)


def test_digits_are_drawn_evenly():
    drawn = "".join(draw_codes(4000, numpy_rng(0, "test")))
    counts = np.bincount([int(d) for d in drawn], minlength=10)
    assert counts.min() > 1800 and counts.max() < 2200


def test_rows_are_prompt_then_code():
    rows = with_codes(["red owl:"], ["12345"], LEAD_INS[:2])
    bare = prompts(["red owl:"], LEAD_INS[:2])
    for row, start, prompt in zip(rows.ids, rows.answer_start, bare.ids, strict=True):
        assert row[:start] == prompt and row[start:] == encode("12345")
    with pytest.raises(InputError, match="a character outside this world's vocabulary"):
        encode("red owl!")


def test_the_tokenizer_gives_the_same_ids(world):
    text = LEAD_INS[0] + world.pools["clean"].prefixes[0] + "90210"
    for tokenizer in (make_tokenizer(), AutoTokenizer.from_pretrained(world.original)):
        assert tuple(tokenizer(text)["input_ids"]) == encode(text)
        assert tokenizer.decode(list(encode(text))) == text


def test_codes_drawn_are_new_each_time_and_repeatable(world):
    first, second = world.random_codes("clean", 0), world.random_codes("clean", 1)
    assert first.answer_start == second.answer_start and first.ids != second.ids
    assert first.ids == world.random_codes("clean", 0).ids


def test_a_model_that_did_not_learn_is_no_world(tmp_path):
    with pytest.raises(ExhumeError, match="Raise epochs above 1"):
        build_codes(replace(TINY, epochs=1), 0, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    "setting",
    [
        {"memorised": 1},
        {"clean": 0},
        {"others": -1},
        {"lead_ins": 25},
        {"per_epoch": 11},
        {"heads": 3},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"enough": 1.0},
    ],
)
def test_settings_are_checked(setting):
    with pytest.raises(InputError, match="cannot be used"):
        CodesConfig(**setting)
