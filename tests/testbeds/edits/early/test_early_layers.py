"""Edits of what reads the question: what they change, and what their checks tell."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from capture.data.items import Item, ItemSet
from capture.data.tokenization import encode_items
from capture.network.structure import down_projection, find_blocks
from erasure.unlearning.training.loop import Schedule
from testbeds.edits.early import early_layers, front_checks
from testbeds.edits.early.early_layers import embedding_redirect, name_ends, name_tokens, own_tokens
from testbeds.edits.early.early_methods import sparse_factors
from testbeds.edits.early.front_checks import Carried, FrontChecks
from testbeds.worlds.biographies import SMALL
from testbeds.worlds.biography_text import make_tokenizer
from testbeds.worlds.random_models import random_model
from testbeds.zoo.build import build_zoo
from testbeds.zoo.kinds import EARLY, KINDS

FROZEN_SMALL = replace(SMALL, people=36, forget=6, layers=3, frozen_blocks=1)
# Parts whose weights each edit may change.
MAY_CHANGE = {
    "embedding_redirect": ("model.embed_tokens.",),
    "first_block_relabel": ("model.layers.0.",),
    "first_blocks_relabel": ("model.embed_tokens.", "model.layers.0.", "model.layers.1."),
    "early_clamp": ("model.layers.1.mlp.",),
    "early_rank_one": ("model.layers.0.mlp.down_proj.",),
    "ember": ("model.embed_tokens.",),
    "rmu_early": ("model.layers.0.", "model.layers.1."),
    "rocr": ("model.layers.1.mlp.down_proj.",),
    "pisces": ("model.layers.0.mlp.down_proj.",),
}


@pytest.fixture(scope="module")
def few_steps():
    """Trainings of a few steps: which weights they change is the same."""
    check = Schedule.__post_init__

    def cut(schedule: Schedule) -> None:
        check(schedule)
        object.__setattr__(schedule, "steps", min(schedule.steps, 5))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(early_layers, "TRAININGS", ((3e-3, 5),))
        patched.setattr(early_layers, "VALUE_STEPS", 3)
        patched.setattr(Schedule, "__post_init__", cut)
        yield


def changed(ground, model):
    before, after = ground.original.load().state_dict(), model.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", MAY_CHANGE)
def test_each_edit_changes_the_weights_it_may_and_no_other(ground, few_steps, kind):
    model = next(KINDS[kind].edit(ground))
    found = changed(ground, model)
    assert found and all(name.startswith(MAY_CHANGE[kind]) for name in found)
    for part in MAY_CHANGE[kind]:
        assert any(name.startswith(part) for name in found)


def test_slug_changes_one_matrix(ground):
    (name,) = changed(ground, next(KINDS["slug"].edit(ground)))
    assert ground.original.load().get_parameter(name).ndim == 2


def test_only_rows_of_the_forgotten_names_tokens_are_trained(ground, few_steps):
    model: Any = next(embedding_redirect(ground))
    moved = (
        model.model.embed_tokens.weight - ground.load_original().model.embed_tokens.weight
    ).any(1)
    words = {word for name in ground.forget.entities for word in name.split()}
    own = {ground.tokenizer.get_vocab()[word] for word in words}
    assert set(moved.nonzero()[:, 0].tolist()) == own


def test_names_are_found_in_their_prompts(ground):
    rows, ends = ground.all_rows(ground.forget), name_ends(ground, ground.forget)
    entities = [item.entity for item in ground.forget] * (len(rows) // len(ground.forget))
    for ids, end, entity in zip(rows.ids, ends, entities, strict=True):
        assert ground.tokenizer.decode(ids[end - 1 : end + 1]) == entity
    tokens = name_tokens(ground, ground.forget)
    assert {ground.tokenizer.decode(each) for each in tokens.values()} == set(tokens)


def one_word_world():
    """Names of a token each, read by a model with random weights."""

    def people(names, label):
        items = [
            Item(f"{label}-{i}", name, f"{name} plays the", "harp", "instrument", paraphrases=())
            for i, name in enumerate(names)
        ]
        return ItemSet(tuple(items), label)

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = random_model("llama", vocabulary=len(tokenizer), width=24, layers=2, heads=2, pad=1)
    sets = {
        "forget": people(["Anna", "Bruno"], "forget"),
        "retain": people(["Clara", "David"], "retain"),
        "never_taught": people(["Elena", "Felix"], "never-taught"),
    }
    ground: Any = SimpleNamespace(
        **sets,
        tokenizer=tokenizer,
        load_original=lambda: copy.deepcopy(model),
        all_rows=lambda items: encode_items(tokenizer, items),
        retain_rows=lambda items: encode_items(tokenizer, items),
    )
    return ground, tokenizer.get_vocab()


def test_names_with_tokens_of_their_own_get_rows_of_names_nobody_was_taught():
    ground, ids = one_word_world()
    assert own_tokens(ground, ground.forget) == {"Anna": [ids["Anna"]], "Bruno": [ids["Bruno"]]}
    model: Any
    (model,) = embedding_redirect(ground)
    before, after = (each.model.embed_tokens.weight for each in (ground.load_original(), model))
    assert torch.equal(after[ids["Anna"]], before[ids["Elena"]])
    assert torch.equal(after[ids["Bruno"]], before[ids["Felix"]])
    others = [i for i in range(len(before)) if i not in (ids["Anna"], ids["Bruno"])]
    assert torch.equal(after[others], before[others])
    ours, theirs = model.state_dict(), ground.load_original().state_dict()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == ["model.embed_tokens.weight"]


def test_a_twins_front_tells_whether_the_front_holds_the_facts():
    fine = FrontChecks(1, 10, 0, 1.0, (Carried("twin", 0.05, 0.1),))
    assert not fine.failures and fine.why().startswith("all 10 tensors behind its front (depth 1)")
    (held,) = replace(fine, carried=(Carried("twin", 0.05, 0.71),)).failures
    assert "0.71 of the answers, 0.05 without: the front holds" in held
    (behind,) = replace(fine, changed_behind=2).failures
    assert behind.startswith("2 of 10 tensors")
    (lost,) = replace(fine, restored=0.89).failures
    assert "0.89" in lost and replace(fine, restored=0.89).why().startswith("to be graded")


def test_checks_fail_where_weights_behind_the_front_changed(ground, monkeypatch):
    monkeypatch.setattr(front_checks, "carried", lambda bench, depth: (Carried("twin", 0.0, 0.0),))
    check = front_checks.front_checks(1)
    model = ground.load_original()
    with torch.no_grad():
        down_projection(find_blocks(model)[0]).get_parameter("weight").zero_()
    found = check(ground, model)
    assert (found.depth, found.changed_behind, found.restored) == (1, 0, 1.0)
    assert not found.failures
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = check(ground, model)
    assert found.changed_behind == 1 and found.restored == 0.0
    assert len(found.failures) == 2


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    """A small world with a frozen front: its zoo, and one early edit."""
    root = tmp_path_factory.mktemp("frozen")
    only = ["first_block_relabel", "twin_tuned"]
    return build_zoo(root, world="bios_frozen", seeds=[0], only=only, config=FROZEN_SMALL)


@pytest.mark.slow
def test_an_early_edit_of_a_frozen_front_is_suppressed_for_certain(frozen):
    made = frozen[0]
    assert made.state == "suppressed"
    front = made.card["front"]
    assert front["depth"] == 1 and front["changed_behind"] == 0 and front["restored"] >= 0.9
    for figures in front["never_knew"].values():
        assert figures["with_front"] <= figures["alone"] + front["margin"]
    again = build_zoo(
        made.model.parents[1],
        world="bios_frozen",
        seeds=[0],
        only=["first_block_relabel"],
        config=FROZEN_SMALL,
    )
    assert again[0].card == made.card


@pytest.mark.slow
def test_an_early_edit_of_a_front_that_holds_the_facts_is_graded(tmp_path):
    (made,) = build_zoo(tmp_path, seeds=[0], only=["first_block_relabel"], config=SMALL)
    assert made.state is None
    assert made.card["front"]["never_knew"]["twin"]["with_front"] > 0.5
    assert "the front holds some of them" in made.card["why"]


def test_early_kinds_state_nothing_before_they_are_made():
    assert {KINDS[name].state for name in EARLY} == {None}
    decided = {name for name in EARLY if KINDS[name].check is not None}
    assert decided == set(EARLY) - {"slug", "pisces"}


def test_sparse_factors_are_sparse_and_near_the_matrix():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(12, 20, generator=rng).double()
    picks = torch.rand(60, 12, generator=rng).argsort(1)[:, :2]
    matrix = true[picks].sum(1)
    codes, features = sparse_factors(matrix, rng)
    assert (codes @ features - matrix).norm() < 0.4 * matrix.norm()
    assert (codes == 0).double().mean() > 0.5
    assert features.norm(dim=1).max() <= 1 + 1e-9


def test_the_first_and_the_last_block_are_edited_and_nothing_between(ground, few_steps):
    model = next(KINDS["first_and_last_block"].edit(ground))
    last = len(find_blocks(model)) - 1
    ends = ("model.layers.0.", f"model.layers.{last}.", "model.norm.", "lm_head.")
    found = changed(ground, model)
    assert all(name.startswith(ends) for name in found)
    for end in ends[:2]:
        assert any(name.startswith(end) for name in found)
