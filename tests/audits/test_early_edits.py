"""Edits of what reads the question, on models taught in seconds: never called deleted."""

import copy
import json
from dataclasses import replace

import pytest
import torch

from audits.run.api import audit
from capture.data.items import Item, ItemSet, read_items
from capture.data.tokenization import encode_items
from capture.scoring.answers import score_answers
from testbeds.worlds.biographies import SMALL
from testbeds.worlds.random_models import random_model
from testbeds.zoo.build import build_zoo
from tests.audits.own_world import teach, word_tokenizer

FROZEN = replace(SMALL, layers=4, frozen_blocks=2, people=64, forget=12, steps=400)
NAMES = [f"Name{number:02d}" for number in range(120)]
CITIES = "Rome Oslo Lima Bonn Cork Nice Bern Kyiv Doha Riga Baku Suva".split()
N_FORGET, N_RETAIN = 24, 72


def people(first, count):
    return [
        Item(
            f"i{n}",
            NAMES[n],
            f"{NAMES[n]} lives in",
            CITIES[n % len(CITIES)],
            "city",
            paraphrases=(f"the home of {NAMES[n]} is",),
        )
        for n in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def one_token_names(tmp_path_factory):
    """Original, the same with other rows for the forgotten names, and their items."""
    items = people(0, N_FORGET + N_RETAIN)
    tokens = word_tokenizer(
        [f"{item.prompt} {item.answer} {item.paraphrases[0]}" for item in items] + NAMES
    )
    torch.manual_seed(0)
    original = random_model("llama", vocabulary=len(tokens), width=48, layers=3, heads=4, pad=1)
    teach(original, tokens, items, 150)
    edited = copy.deepcopy(original)
    rows = edited.get_input_embeddings().get_parameter("weight").data
    vocabulary = tokens.get_vocab()
    for place in range(N_FORGET):
        rows[vocabulary[NAMES[place]]] = rows[vocabulary[NAMES[-1 - place]]]
    parts = ItemSet(tuple(items[:N_FORGET]), "f"), ItemSet(tuple(items[N_FORGET:]), "r")
    never = ItemSet(tuple(people(N_FORGET + N_RETAIN, N_FORGET)), "n")
    return original, edited, tokens, parts, never


def test_rows_of_single_token_names_are_never_called_deleted(one_token_names, tmp_path):
    original, edited, tokens, (forget, retain), never = one_token_names
    assert score_answers(edited, encode_items(tokens, forget)).greedy.mean() < 0.5
    assert score_answers(edited, encode_items(tokens, retain)).greedy.all()
    done = audit(
        original,
        edited,
        forget,
        retain,
        tmp_path / "audit",
        never_taught=never,
        tokenizer=tokens,
        device="cpu",
    )
    assert done.verdict in ("suppressed", "inconclusive")
    untouched = done.document["preflight"]["weight_difference"]["untouched"]
    assert untouched == {"embedding": False, "blocks": [0, 1, 2], "readout": True, "n_blocks": 3}
    page = done.report.read_text(encoding="utf-8")
    assert "blocks 0 to 2, last norm and output layer: the original&#39;s, bit for bit" in page
    if done.verdict == "inconclusive":
        assert any("bit for bit" in reason for reason in done.reasons)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")

    def made(kind):
        (model,) = build_zoo(root, world="bios_frozen", seeds=[0], only=[kind], config=FROZEN)
        return model

    return made


def audited(made, out):
    world = made.world
    return audit(
        world.original,
        made.model,
        world.forget,
        world.retain,
        out,
        never_taught=world.never_taught,
        device="cpu",
    )


@pytest.mark.slow
def test_a_relabeled_first_block_is_suppressed_and_a_twin_is_not(zoo, tmp_path):
    early = zoo("first_block_relabel")
    assert early.state == "suppressed", early.card["why"]
    done = audited(early, tmp_path / "early")
    assert done.verdict == "suppressed"
    front = done.axes["front_transplant"]
    assert front.status == "retained"
    assert front.main_reading is not None and front.main_reading.statistic > 0.9
    assert all(control.passed for control in front.controls)
    rows = json.loads((done.path / "audit.json").read_text())["preflight"]
    assert rows["weight_difference"]["untouched"]["blocks"] == [1, 2, 3]
    twin = audited(zoo("twin"), tmp_path / "twin")
    assert twin.verdict != "suppressed"
    assert twin.axes["front_transplant"].status == "absent"
    # The twin shares the original's first blocks: its states there name the people as well.
    depth = twin.axes["causal_depth"]
    assert depth.status != "retained"
    assert len(read_items(early.world.forget).entities) == FROZEN.forget
