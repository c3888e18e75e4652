"""The world of a pretrained model, with a small stand-in for the published weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audits.validation.trials import AuditPlan
from capture.checkpoints.open import open_checkpoint
from evidence.errors import InputError
from testbeds.edits import workbench
from testbeds.edits.workbench import TextWorkbench
from testbeds.worlds import biographies
from testbeds.worlds.biographies import SMALL, SMOL, new_model, tokenizer_of
from testbeds.worlds.biography_text import make_tokenizer
from testbeds.worlds.rehearsal_text import MAX_TOKENS, rehearsal_rows
from testbeds.zoo.build import build_zoo, split
from testbeds.zoo.registry import WORLDS, sized

KINDS = ["untouched", "last_block_relabel", "twin"]
CONFIG = replace(SMALL, family="smollm2")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as ``fetch`` gives it, of a model that is small and knows nothing."""
    folder = tmp_path_factory.mktemp("base")
    new_model(SMALL, make_tokenizer(), 5).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def zoo(base, tmp_path_factory):
    root = tmp_path_factory.mktemp("smol")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(biographies, "fetch_smollm2", lambda: base)
        # The stand-in is as small as the models that the rates were made for.
        patch.setitem(workbench.LEARNING_RATE_FACTOR, "smollm2", 1.0)
        for place in (biographies, workbench):
            patch.setattr(place, "rehearsal_rows", lambda tok: rehearsal_rows(tok)[range(16)])
        yield build_zoo(root, world="smol", seeds=[0], only=KINDS, config=CONFIG)


def test_states_hold_by_construction(zoo):
    shown = {each.kind: each.card["measured"] for each in zoo}
    assert [each.kind for each in zoo] == KINDS
    assert shown["untouched"]["said"] >= 0.9
    for kind in ("last_block_relabel", "twin"):
        assert shown[kind]["said"] <= 0.2
        assert shown[kind]["kept"] >= 0.9
    assert all(each.name.startswith("smol-smollm2-0-") for each in zoo)


def test_models_start_from_the_published_weights(zoo, base):
    start = open_checkpoint(base).load().state_dict()
    once, second = (new_model(CONFIG, tokenizer_of(CONFIG), seed) for seed in (0, 1))
    for name, weight in start.items():
        assert torch.equal(once.state_dict()[name], weight)
        assert torch.equal(second.state_dict()[name], weight)
    # Nearer to where they began than a model that began elsewhere.
    twin = next(e for e in zoo if e.kind == "twin")
    ended = open_checkpoint(twin.model).load().state_dict()
    other = new_model(SMALL, make_tokenizer(), 6).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    near, far = ((ended[name] - each[name]).norm() for each in (start, other))
    assert near < far


def test_language_is_held_all_over_its_lines():
    rows = rehearsal_rows(make_tokenizer())
    assert rows == rehearsal_rows(make_tokenizer())
    assert len(rows) > 200
    places = np.array(rows.answer_start)
    sizes = np.array([len(ids) for ids in rows.ids])
    assert (1 <= places).all()
    assert (places <= np.maximum(1, sizes // 2)).all()
    assert sizes.max() == MAX_TOKENS
    assert len(set(places.tolist())) > 5


def test_what_is_kept_has_the_language_of_a_pretrained_model_alone(zoo, base):
    ground = TextWorkbench.from_world(zoo[0].world, CONFIG, 0, "cpu")
    facts = ground.all_rows(ground.retain)
    assert ground.retain_rows(ground.retain) == facts + rehearsal_rows(ground.tokenizer)[range(16)]
    small = replace(ground, config=SMALL)
    assert small.retain_rows(small.retain) == facts


def test_every_kind_is_in_the_split_or_left_out_on_purpose():
    place, parts = WORLDS["smol"], split("smol")
    assert not set(parts["tuning"]["seeds"]) & set(parts["held_out"]["seeds"])
    assert set(parts["held_out"]["kinds"]) <= set(place.kinds)
    assert parts["held_out"]["families"] == list(place.families)
    assert "random_init" not in place.kinds
    certain = {name for name, kind in place.kinds.items() if kind.state is not None}
    # Retrains 3 and 4 belong to the tuning of the bios world.
    assert certain - set(parts["held_out"]["kinds"]) == {"retrain_3", "retrain_4"}


def test_a_plan_takes_the_worlds_own_size(tmp_path):
    plan = AuditPlan(tmp_path, (("smollm2", 10),), ("twin",), world="smol")
    assert plan.sized("smollm2") == SMOL
    small = AuditPlan(tmp_path, (), (), config=SMALL)
    assert small.sized("gpt2") == sized(SMALL, "gpt2")


def test_a_world_without_a_split_is_refused():
    with pytest.raises(InputError, match="no world with a split 'capitals'"):
        split("capitals")
