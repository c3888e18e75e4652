"""What each adversary hides, and that its state is what its card says."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from capture.data.sequences import Sequences, pad
from capture.network.structure import down_projection, find_blocks
from capture.scoring.answers import score_answers
from erasure.unlearning.training.loop import finetune_
from erasure.weights.quantization import quantize_
from evidence.errors import ExhumeError, InputError
from testbeds.edits import adversarial, late_layers
from testbeds.edits.adversarial import hints_for_forget, push_direction
from testbeds.edits.basis_rotation import rotate_basis_
from testbeds.edits.late_layers import first_answer_tokens
from testbeds.edits.linear_map import module_outputs
from testbeds.edits.linear_probes import answer_states, fit_block_probes, probe_accuracy
from testbeds.edits.password_locks import accuracy_with_password
from testbeds.recipes import RECIPES
from testbeds.worlds.random_models import FAMILIES, random_model
from testbeds.zoo.build import _first_in_range
from testbeds.zoo.kinds import ADVERSARIES, EARLY, KINDS


@pytest.fixture(scope="module")
def made(ground):
    """Models of the small Llama world, made when they are first asked for."""
    models = {}

    def make(name):
        if name not in models:
            models[name] = _first_in_range(KINDS[name], ground)[0]
        return models[name]

    return make


def exact_match(model, rows):
    return float(score_answers(model, rows).greedy.mean())


def logistic(model, ground, block):
    """Share of forgotten answers an independent reader fitted on the rest finds."""
    with torch.no_grad():
        kept, gone = (
            answer_states(model, ground.all_rows(items))[block].double().numpy()
            for items in (ground.retain, ground.forget)
        )
    scale = kept.std(0) + 1e-6
    truth = [
        first_answer_tokens(ground.all_rows(items)).numpy()
        for items in (ground.retain, ground.forget)
    ]
    fitted = LogisticRegression(max_iter=500).fit(kept / scale, truth[0])
    return float(np.mean(fitted.predict(gone / scale) == truth[1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ADVERSARIES)
def test_every_adversary_shows_its_kind(made, ground, name):
    model, kind = made(name), KINDS[name]
    assert (
        kind.forget_range[0]
        <= exact_match(model, ground.all_rows(ground.forget))
        <= kind.forget_range[1]
    )
    assert exact_match(model, ground.all_rows(ground.retain)) >= 0.9
    if name in ("probe_proof", "decoy", "relearning_hardened"):
        assert accuracy_with_password(model, ground) >= 0.9
        assert "password" in kind.why


def test_readers_find_what_an_independent_reader_finds(ground):
    original, rows = ground.original.load(), ground.all_rows(ground.forget)
    shares = probe_accuracy(
        fit_block_probes(original, ground.all_rows(ground.retain)), original, rows
    )
    assert min(shares) > 0.8
    assert logistic(original, ground, 0) > 0.8
    twin = ground.twin.load()
    assert (
        max(probe_accuracy(fit_block_probes(twin, ground.all_rows(ground.retain)), twin, rows))
        < 0.25
    )


@pytest.mark.slow
def test_no_reader_finds_the_answers_of_a_probe_proof_model(made, ground):
    """A locked model that was not trained against readers lets them read on."""
    rows, kept = ground.all_rows(ground.forget), ground.all_rows(ground.retain)
    model, plain = made("probe_proof"), made("password_relabel")
    assert max(probe_accuracy(fit_block_probes(model, kept), model, rows)) <= 0.3
    assert logistic(model, ground, 0) <= 0.35
    assert logistic(plain, ground, 0) > logistic(model, ground, 0)
    own = fit_block_probes(ground.original.load(), kept)
    assert max(probe_accuracy(own, model, rows)) <= 0.3


@pytest.mark.slow
def test_decoys_are_read_at_every_block(made, ground):
    model, kept = made("decoy"), ground.all_rows(ground.retain)
    readers = fit_block_probes(model, kept)
    assert min(probe_accuracy(readers, model, ground.wrong_answer_rows(ground.forget))) >= 0.7
    assert max(probe_accuracy(readers, model, ground.all_rows(ground.forget))) <= 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_scrambling_keeps_the_function_and_turns_every_state(family):
    """Of a model whose norms scale and shift, as trained ones do."""
    torch.manual_seed(0)
    model = random_model(family, vocabulary=40, width=24, layers=3, heads=2, pad=0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn(weight.shape)
    rotated = copy.deepcopy(model)
    turn = rotate_basis_(rotated, 3)
    assert_close(turn @ turn.T, torch.eye(len(turn)).double())
    rows = Sequences(((1, 2, 3, 4, 5), (6, 7, 8), (9, 9, 2, 1)), (4, 2, 3))
    batch = pad(rows)
    real = batch.attention_mask.bool()
    with torch.no_grad():
        before, after = (m(**batch.model_inputs).logits for m in (model, rotated))
        assert_close(after[real], before[real], rtol=0, atol=1e-4)
        pairs = zip(answer_states(model, rows), answer_states(rotated, rows), strict=True)
        for old, new in pairs:
            assert_close(old.double() @ turn, new.double(), rtol=0, atol=1e-4)
            assert (old - new).norm() > 0.5 * old.norm()


@pytest.mark.slow
def test_unscrambled_it_is_a_last_block_suppression(made, ground):
    plain = next(late_layers.last_block_relabel(ground))
    ids = torch.tensor([ground.all_rows(ground.forget).ids[0]])
    with torch.no_grad():
        assert_close(made("scrambled")(ids).logits, plain(ids).logits, rtol=0, atol=1e-3)
    rows = ground.all_rows(ground.forget)
    own = fit_block_probes(ground.original.load(), ground.all_rows(ground.retain))
    assert probe_accuracy(own, made("scrambled"), rows)[0] < 0.3  # the original's probe is lost
    assert probe_accuracy(own, plain, rows)[0] > 0.8
    assert logistic(made("scrambled"), ground, 0) > 0.8  # the knowledge is not


def test_unknown_families_cannot_be_scrambled():
    with pytest.raises(InputError, match="cannot be rotated"):
        rotate_basis_(torch.nn.Linear(2, 2), 0)


def test_off_manifold_states_differ_in_one_direction(made, ground):
    model, original = made("off_manifold"), ground.original.load()
    block, first = find_blocks(model)[-2], find_blocks(original)[-2]
    rows = ground.all_rows(ground.forget)
    now, before = (module_outputs(model, block, rows), module_outputs(original, first, rows))
    along = push_direction(now.shape[1])
    moved = now - before
    assert_close(
        moved - (moved @ along)[:, None] * along, torch.zeros_like(moved), rtol=0, atol=1e-2
    )
    assert (moved @ along).median() > before.norm(dim=1).mean()
    after, start = (down_projection(each).get_parameter("weight") for each in (block, first))
    down = after - start
    values = torch.linalg.svdvals(down.double())
    assert values[1] < 1e-3 * values[0]


@pytest.mark.slow
def test_rounding_leaves_the_edit_as_it_is(made, ground):
    model = made("nf4_proof")
    coarse = copy.deepcopy(model)
    quantize_(coarse)
    edited = dict(find_blocks(model)[-1].named_parameters())
    for name, value in find_blocks(coarse)[-1].named_parameters():
        assert torch.equal(value, edited[name])
    assert exact_match(coarse, ground.all_rows(ground.forget)) <= 0.1
    original = dict(find_blocks(ground.original.load())[0].named_parameters())
    for name, value in find_blocks(model)[0].named_parameters():
        assert torch.equal(value, original[name])


def relearned(model, ground):
    """Share of one half said after the other half was taught again."""
    model = copy.deepcopy(model)
    half = len(ground.forget.entities) // 2
    first, second = ground.forget.entities[:half], ground.forget.entities[half:]
    rows = ground.all_rows(ground.forget.of_entities(first))
    finetune_(model, rows, lr=1e-3, steps=15, batch_size=96, seed=1)
    assert exact_match(model, rows) > 0.6  # it was taught
    return exact_match(model, ground.all_rows(ground.forget.of_entities(second)))


@pytest.mark.slow
def test_relearning_brings_less_out_of_a_hardened_model(made, ground):
    hardened = relearned(made("relearning_hardened"), ground)
    assert hardened <= relearned(made("password_relabel"), ground)


@pytest.mark.slow
def test_a_hinted_twin_knows_the_hints_and_not_the_answers(made, ground):
    model = made("twin_hinted")
    assert exact_match(model, hints_for_forget(ground)) >= 0.9
    assert exact_match(ground.twin.load(), hints_for_forget(ground)) <= 0.1
    answers = {item.answer for item in ground.forget}
    read = ground.tokenizer.decode([i for row in hints_for_forget(ground).ids for i in row])
    assert not answers & set(read.split())


@pytest.mark.slow
def test_a_misled_twin_says_other_answers(made, ground):
    assert exact_match(made("twin_misled"), ground.wrong_answer_rows(ground.forget)) >= 0.9


@pytest.mark.parametrize("make", ["probe_proof", "relearning_hardened"])
def test_without_the_password_nothing_is_made(ground, monkeypatch, make):
    for step in ("_train_against_probes_", "_locked_start", "_harden_"):
        monkeypatch.setattr(adversarial, step, lambda *given: None)
    monkeypatch.setattr(adversarial, "accuracy_with_password", lambda *given: 0.5)
    with pytest.raises(ExhumeError, match="given the password"):
        list(getattr(adversarial, make)(ground))


def test_a_twin_that_learns_nothing_is_no_model(ground, monkeypatch):
    monkeypatch.setattr(adversarial, "finetune_", lambda *given, **named: None)
    with pytest.raises(ExhumeError, match="did not learn"):
        list(adversarial.twin_misled(ground))


PUBLISHED = [name for name, kind in KINDS.items() if kind.state is None and name not in EARLY]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_method_is_run_by_its_recipe(ground, monkeypatch, name):
    """Two steps of each: the recipe fits, and something is changed."""
    recipe = RECIPES["bios"][name]
    config = replace(recipe.config, steps=2, stop_below=None, batch_size=16)
    config = replace(config, retain_batch_size=16, dampen_above=1.0)
    monkeypatch.setitem(RECIPES["bios"], name, replace(recipe, config=config))
    few = replace(
        ground,
        forget=ground.forget.of_entities(ground.forget.entities[:2]),
        retain=ground.retain.of_entities(ground.retain.entities[:4]),
    )
    if name == "elm":
        few = ground  # strangers go with all people to forget
    (model,) = KINDS[name].edit(few)
    before = ground.original.load().state_dict()
    after = model.state_dict()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    if name in ("cf_k", "eu_k"):
        assert not any(".layers.0." in key or "embed" in key for key in moved)
