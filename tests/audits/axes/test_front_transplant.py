"""The original's front before the candidate's blocks: parts by hand, and audits of real edits."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution.patching.cross_model import DonorStates, read_states, score_patched
from audits.axes.decodability.state_readers import (
    MAX_READ,
    StateReading,
    read_answers,
    usable_sites,
)
from audits.axes.front_transplant.alignment import mapped_states
from audits.axes.front_transplant.early_suppression import (
    _replaced,
    name_tokens,
    redirected_names,
    redirections,
)
from audits.axes.front_transplant.measurement import shuffle_weights_
from audits.core.preflight import Damage
from capture.checkpoints.open import open_checkpoint
from capture.data.items import read_items
from capture.data.questions import build_questions
from capture.network.structure import find_blocks
from capture.scoring.answers import score_answers

FINE = Damage({"retain accuracy": 1.0}, ())
SITES = ("embed", "resid.0", "resid.1")


@pytest.fixture(scope="module")
def original(world):
    return open_checkpoint(world.original)


@pytest.fixture(scope="module")
def rows(world, original):
    items = read_items(world.forget)
    return build_questions(items, 1).encoded(original.tokenizer)


def reading(said, *, relation="birthplace", guess=0.1, fitted=1.0):
    names = ("rbf, name",) * 3
    return StateReading(relation, "shared", 40, guess, tuple(said), names, tuple(said), fitted)


class TestReaders:
    def test_they_read_the_last_block_and_not_the_embedding(self, world, original):
        forget, retain = read_items(world.forget), read_items(world.retain)
        model, sites = original.load(), ["embed", "resid.0", "resid.1"]
        for found in read_answers(model, original.tokenizer, forget, retain, sites):
            assert found.shares[0] < found.shares[-1]
            assert found.shares[-1] > 0.8
            assert found.able
            assert "last token" in found.readers[-1] or "both" in found.readers[-1]

    def test_fitted_on_permuted_answers_they_find_nothing(self, world, original):
        forget, retain = read_items(world.forget), read_items(world.retain)
        answers = [item.answer for item in retain]
        order = np.random.default_rng(0).permutation(len(answers))
        by_relation: dict[str, list[str]] = {}
        for place in order:
            by_relation.setdefault(retain.items[place].relation, []).append(answers[place])
        mixed = replace(
            retain,
            items=tuple(replace(item, answer=by_relation[item.relation].pop()) for item in retain),
        )
        found = read_answers(original.load(), original.tokenizer, forget, mixed, ["resid.1"])
        assert np.mean([each.fitted for each in found]) < 0.45
        # The row of the output layer needs no fit: at the last block it is the model itself.
        assert all(each.readers[0].startswith("logit lens") for each in found)

    def test_a_depth_counts_where_no_relation_is_read(self):
        both = (reading([0.1, 0.2, 0.9]), reading([0.1, 0.9, 1.0], relation="occupation"))
        assert usable_sites(both, SITES) == (("birthplace", "occupation"), ("embed",))
        one = (reading([0.1, 0.2, 0.9]),)
        assert usable_sites(one, SITES) == (("birthplace",), ("embed", "resid.0"))

    def test_a_relation_that_the_embedding_holds_is_left_out(self):
        held = (reading([0.9, 0.9, 1.0]), reading([0.1, 0.1, 1.0], relation="occupation"))
        assert usable_sites(held, SITES)[0] == ("occupation",)
        assert usable_sites(held[:1], SITES) == ((), ())

    def test_readers_that_never_read_anything_leave_the_embedding_alone(self):
        blind = (reading([0.1, 0.1, 0.2], fitted=0.2),)
        assert usable_sites(blind, SITES) == (("birthplace",), ("embed",))

    @given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 0.9))
    def test_no_site_counts_that_is_read_beyond_the_limit(self, said, guess):
        one = (reading(said, guess=guess),)
        _, sites = usable_sites(one, SITES)
        for place, site in enumerate(SITES):
            if site in sites:
                assert one[0].shares[place] <= MAX_READ


class TestEarlySuppression:
    def test_names_are_read_as_invented_ones_and_no_weight_changes(self, world, original, rows):
        model, tokenizer = original.load(), original.tokenizer
        before = copy.deepcopy(model.state_dict())
        forget, never = read_items(world.forget), read_items(world.never_taught)
        names = redirections(tokenizer, forget, never)
        assert set(map(len, names)) == set(map(len, names.values()))
        retain = build_questions(read_items(world.retain), 1).encoded(tokenizer)
        with redirected_names(model, names):
            assert score_answers(model, rows).greedy.mean() < 0.3
            assert score_answers(model, retain).greedy.mean() > 0.95
        assert score_answers(model, rows).greedy.all()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_every_question_is_the_one_about_the_other_name(self, world, original):
        model, tokenizer = original.load(), original.tokenizer
        forget, never = read_items(world.forget), read_items(world.never_taught)
        old, new = forget.items[0], next(iter(never))
        ids = tokenizer(old.prompt, return_tensors="pt")["input_ids"]
        spelled, other = (name_tokens(tokenizer, [item])[item.entity][0] for item in (old, new))
        assert len(spelled) == len(other)
        with redirected_names(model, {spelled: other}), torch.no_grad():
            redirected = model(ids).logits
        swapped = old.prompt.replace(old.entity, new.entity)
        with torch.no_grad():
            asked = model(tokenizer(swapped, return_tensors="pt")["input_ids"]).logits
        assert torch.equal(redirected, asked)

    def test_without_other_names_nothing_is_redirected(self, world, original):
        forget = read_items(world.forget)
        assert redirections(original.tokenizer, forget, forget) == {}

    @given(
        st.lists(st.integers(0, 5), max_size=12),
        st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), max_size=3),
    )
    def test_only_whole_names_are_replaced(self, row, spelled):
        names = {tuple(each): tuple(10 + i for i in each) for each in spelled}
        by_first: dict[int, list[tuple[int, ...]]] = {}
        for each in sorted(names, key=len, reverse=True):
            by_first.setdefault(each[0], []).append(each)
        changed = _replaced(row, by_first, names)
        assert len(changed) == len(row)
        assert [value % 10 for value in changed] == row
        for name in names:
            for start in range(len(row) - len(name) + 1):
                window = changed[start : start + len(name)]
                assert tuple(window) != name  # none is left


class TestBlocks:
    def test_shuffled_blocks_keep_their_entries_and_say_nothing(self, original, rows):
        model, before = original.load(), original.load()
        blocks = find_blocks(model)
        shuffle_weights_(blocks, 0)
        for new, old in zip(blocks, find_blocks(before), strict=True):
            for one, other in zip(new.parameters(), old.parameters(), strict=True):
                assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)
                changed = one.dim() > 1
                assert torch.equal(one, other) != changed
        assert score_answers(model, rows).greedy.mean() < 0.3

    def test_a_rotated_basis_is_found(self):
        rng = np.random.default_rng(0)
        mask = np.ones((40, 3), bool)
        source = DonorStates({"embed": rng.normal(size=(40, 3, 6)).astype(np.float32)}, mask)
        rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        target = DonorStates(
            {"embed": (source.values["embed"] @ rotation + 2).astype(np.float32)}, mask
        )
        new = DonorStates({"embed": rng.normal(size=(5, 3, 6)).astype(np.float32)}, mask[:5])
        mapped = mapped_states(new, source, target)
        expected = new.values["embed"] @ rotation + 2
        np.testing.assert_allclose(mapped.values["embed"], expected, atol=0.02)

    def test_the_originals_front_before_its_own_blocks_changes_nothing(self, original, rows):
        model = original.load()
        states = read_states(model, rows, ["embed", "resid.0"], "all")
        plain = score_answers(model, rows)
        for scores in score_patched(model, rows, {"own": states}, "all")["own"].values():
            np.testing.assert_allclose(scores.logprob, plain.logprob, atol=1e-4)
