"""Methods that distil, dampen, mask, retrain or negate, on tiny models."""

import copy
import math

import pytest
import torch
from torch.testing import assert_close

from capture.data.sequences import Sequences, pad
from capture.network.structure import blocks_and_after, random_like
from erasure.unlearning.config import METHODS, UnlearnConfig
from erasure.unlearning.methods.dampening import dampen_
from erasure.unlearning.methods.relabeling import masked_gradients, saliency_masks
from erasure.unlearning.run import unlearn_
from erasure.unlearning.training.loop import finetune_
from erasure.unlearning.training.objectives import dpo, sequence_logprobs, simnpo
from erasure.unlearning.training.task import TextTask, diagonal_fisher
from evidence.errors import InputError
from tests.helpers.tiny_erasure import (
    FORGET,
    RELABELLED,
    RETAIN,
    changed,
    facts,
    greedy,
    tiny_gpt2,
    tiny_llama,
    tiny_neox,
    weights,
)

ANSWERS = (30, 31, 32, 33)
NOVICE = facts(20, 4, ANSWERS)
REFUSAL = Sequences(
    tuple(
        (*ids[:start], 38, 39) for ids, start in zip(FORGET.ids, FORGET.answer_start, strict=True)
    ),
    FORGET.answer_start,
)
FAMILIES = [tiny_llama, tiny_gpt2, tiny_neox]


def measure(model):
    return {"forget": greedy(model, FORGET), "retain": greedy(model, RETAIN)}


def run(model, config, seed=0, relabeled=RELABELLED, **extra):
    return unlearn_(
        model,
        FORGET,
        RETAIN,
        config,
        relabeled=REFUSAL if config.method == "dpo" else relabeled,
        novice=NOVICE,
        seed=seed,
        **extra,
    )


def last_logits(model, data):
    with torch.no_grad():
        logits = model(**pad(data).model_inputs).logits
    return logits[torch.arange(len(data)), torch.tensor(data.answer_start) - 1]


@pytest.mark.parametrize(
    ("config", "keeps"),
    [
        (UnlearnConfig("simnpo", lr=3e-3, steps=80, beta=4.5), 0.75),
        (UnlearnConfig("dpo", lr=3e-3, steps=60), 0.75),
        (UnlearnConfig("undial", lr=3e-3, steps=80), 0.75),
        (UnlearnConfig("bad_teacher", lr=3e-3, steps=150), 0.75),
        (UnlearnConfig("elm", lr=3e-3, steps=80, guidance=3.0), 0.75),
        (UnlearnConfig("salun", lr=3e-3, steps=80), 0.75),
        (UnlearnConfig("scrub", lr=1e-2, steps=30, ascents=10, temperature=2), 0.5),
        (UnlearnConfig("task_vector", lr=3e-3, steps=20, scale=4.0), 0.0),
    ],
    ids=lambda value: getattr(value, "method", ""),
)
def test_forgets(knows, config, keeps):
    assert measure(knows) == {"forget": 1.0, "retain": 1.0}
    run(knows, config)
    assert measure(knows)["forget"] <= 0.25
    assert measure(knows)["retain"] >= keeps


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_in_every_family(family, method):
    model = family()
    before = weights(model)
    log = run(model, UnlearnConfig(method, lr=1e-3, steps=2, rmu_layer=1))
    assert changed(before, model) or log.last.get("dampened") == 0
    assert isinstance(log.config, UnlearnConfig) and log.config.method == method
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("method", ["simnpo", "undial", "elm", "bad_teacher", "dpo"])
def test_a_seed_fixes_the_bits(knows, method):
    models = [copy.deepcopy(knows) for _ in range(2)]
    for place, model in enumerate(models):
        torch.manual_seed(place)
        run(model, UnlearnConfig(method, lr=1e-3, steps=3, batch_size=2), seed=5)
    assert not changed(weights(models[0]), models[1])


def first_losses(model, method, **settings):
    config = UnlearnConfig(method, lr=1e-6, steps=1, retain_weight=0.0, **settings)
    return run(copy.deepcopy(model), config).rows[0]


def test_first_losses_are_the_published_ones(knows):
    """Before any step the model is its own reference and teacher."""
    with torch.no_grad():
        before = sequence_logprobs(knows, pad(FORGET))
    ones = torch.ones(4)
    want = float(simnpo(before, ones, 2.5, 0.1).mean())
    got = first_losses(knows, "simnpo", beta=2.5, margin=0.1)["forget_loss"]
    assert got == pytest.approx(want, rel=1e-4)
    same = float(dpo(torch.zeros(1), torch.zeros(1), 0.1))
    got = first_losses(knows, "dpo")["forget_loss"]
    assert got == pytest.approx(same, rel=1e-5) == pytest.approx(20 * math.log(2))


def test_undial_starts_at_the_divergence_from_its_own_lowered_logits(knows):
    logits = last_logits(knows, FORGET)
    truth = torch.tensor([ids[-1] for ids in FORGET.ids])
    lower = logits.clone()
    lower[torch.arange(4), truth] -= 7.0
    want = torch.nn.functional.kl_div(
        logits.log_softmax(-1), lower.softmax(-1), reduction="batchmean"
    )
    got = first_losses(knows, "undial", lowered=7.0)["forget_loss"]
    assert got == pytest.approx(float(want), rel=1e-4)


def test_undial_ends_at_its_target(knows):
    before = last_logits(knows, FORGET)
    truth = torch.tensor([ids[-1] for ids in FORGET.ids])
    before[torch.arange(4), truth] -= 5.0
    config = UnlearnConfig("undial", lr=3e-3, steps=150, lowered=5.0, retain_weight=0)
    run(knows, config)
    now = last_logits(knows, FORGET)
    assert_close(now.softmax(-1), before.softmax(-1), rtol=0, atol=0.1)


def test_the_bad_teacher_is_followed_on_forget_rows_and_the_original_elsewhere(knows):
    config = UnlearnConfig("bad_teacher", lr=3e-3, steps=200)
    kept = last_logits(knows, RETAIN).softmax(-1)
    teacher = last_logits(random_like(knows, 0), FORGET).softmax(-1)
    run(knows, config)
    assert_close(last_logits(knows, FORGET).softmax(-1), teacher, rtol=0, atol=0.1)
    assert_close(last_logits(knows, RETAIN).softmax(-1), kept, rtol=0, atol=0.2)


def test_elm_speaks_of_the_one_to_forget_as_of_somebody_unknown(knows):
    unknown = last_logits(knows, NOVICE).softmax(-1)
    run(knows, UnlearnConfig("elm", lr=3e-3, steps=200, retain_weight=0.0))
    assert_close(last_logits(knows, FORGET).softmax(-1), unknown, rtol=0, atol=0.1)


def test_elm_reads_each_row_with_its_own_novice(knows):
    """With batches of different lengths in mixed order."""
    some = first_losses(knows, "elm", batch_size=4)["forget_loss"]
    logits, novice = last_logits(knows, FORGET), last_logits(knows, NOVICE)
    want = torch.nn.functional.kl_div(
        logits.log_softmax(-1), novice.softmax(-1), reduction="batchmean"
    )
    assert some == pytest.approx(float(want), rel=1e-4)


def test_scrub_takes_turns_and_ends_with_the_rest(knows):
    config = UnlearnConfig("scrub", lr=1e-4, steps=12, batch_size=2, retain_batch_size=4, ascents=2)
    rows = run(knows, config).rows
    turns = ["f" if "forget_loss" in row else "r" for row in rows]
    assert "".join(turns) == "ffrr" * 2 + "rrrr"
    assert all(row["forget_loss"] <= 1e-6 for row in rows if "forget_loss" in row)


def test_scrub_climbs_away_from_the_teacher(knows):
    config = UnlearnConfig("scrub", lr=3e-3, steps=60, ascents=30)
    rows = [r["forget_loss"] for r in run(knows, config).rows if "forget_loss" in r]
    assert rows[-1] < rows[0] - 1.0  # the loss is the negative divergence


def test_dampening_by_hand():
    weight = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0])
    forget = torch.tensor([10.0, 40.0, 0.0, 11.0, 5.0])
    everything = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    # Above ten times as important: 40 and 11, by 2 / 40 and 2 / 11.
    assert dampen_(weight, forget, everything, 10.0, 2.0) == 2
    assert_close(weight, torch.tensor([2.0, 0.1, 2.0, 4 / 11, 2.0]))
    weak = torch.tensor([2.0])
    assert dampen_(weak, torch.tensor([3.0]), torch.tensor([1.0]), 2.0, 9.0) == 1
    assert weak.item() == 2.0  # never enlarged


def test_the_fisher_is_the_mean_squared_gradient_of_single_rows(knows):
    (_name, parameter), *_ = knows.named_parameters()
    found = diagonal_fisher(knows, [parameter], FORGET, "answer")[0]
    want = torch.zeros_like(parameter)
    for row in range(len(FORGET)):
        ids = torch.tensor([FORGET.ids[row]])
        start = FORGET.answer_start[row]
        labels = ids.clone()
        labels[:, :start] = -100
        loss = knows(ids, labels=labels).loss
        want += torch.autograd.grad(loss, parameter)[0].square() / len(FORGET)
    assert_close(found, want, rtol=1e-3, atol=1e-9)
    assert parameter.grad is None


def test_ssd_shrinks_and_never_grows_or_flips_a_weight(knows):
    before = weights(knows)
    log = run(knows, UnlearnConfig("ssd", dampen_above=1.0, dampen_by=0.2))
    assert log.last["dampened"] > 0
    moved = 0
    for name, value in knows.state_dict().items():
        assert (value.abs() <= before[name].abs()).all()
        assert (value * before[name] >= 0).all()
        moved += int((value != before[name]).sum())
    assert moved <= log.last["dampened"]
    assert measure(knows)["forget"] < 1.0


def test_a_mask_holds_the_largest_gradients_and_nothing_else_moves(knows):
    parameters = list(knows.parameters())
    masks = saliency_masks(TextTask(knows, FORGET, RETAIN), parameters, 0.25)
    total = sum(mask.numel() for mask in masks)
    assert sum(int(mask.sum()) for mask in masks) == round(0.25 * total)
    copied = copy.deepcopy(knows)
    batch = pad(FORGET)
    labels = batch.input_ids.masked_fill(~batch.answer_mask, -100)
    copied(**batch.model_inputs, labels=labels).loss.backward()
    sizes = [p.grad.abs() for p in copied.parameters()]
    inside = torch.cat([s[m] for s, m in zip(sizes, masks, strict=True)])
    outside = torch.cat([s[~m] for s, m in zip(sizes, masks, strict=True)])
    assert inside.min() >= outside.max() * (1 - 1e-3)

    before = [parameter.detach().clone() for parameter in parameters]
    config = UnlearnConfig("salun", lr=1e-3, steps=5, saliency=0.25, weight_decay=0.5)
    run(knows, config)
    for parameter, old, mask in zip(parameters, before, masks, strict=True):
        assert torch.equal(parameter[~mask], old[~mask])
    assert any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_masks_are_taken_off_again(knows):
    parameters = list(knows.parameters())
    nothing = [torch.zeros_like(p, dtype=torch.bool) for p in parameters]
    before = weights(knows)
    with masked_gradients(parameters, nothing):
        finetune_(knows, FORGET, lr=1e-3, steps=1, seed=0)
    assert not changed(before, knows)
    finetune_(knows, FORGET, lr=1e-3, steps=1, seed=0)
    assert changed(before, knows)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["cf_k", "eu_k"])
def test_only_the_end_of_the_network_is_taught(family, method):
    model = family()
    model.config.tie_word_embeddings = False
    before = weights(model)
    config = UnlearnConfig(method, lr=1e-3, steps=2, last_k=1)
    log = run(model, config)
    assert "forget_loss" not in log.last
    moved = changed(before, model)
    assert all(".0." not in name and ".1." not in name for name in moved)
    embeddings = {"embed_tokens", "wte", "wpe", "embed_in"}
    assert not any(part in embeddings for name in moved for part in name.split("."))
    head = model.get_output_embeddings().weight
    names = {name for name, value in model.named_parameters() if value is head}
    assert names <= moved
    assert any(".2." in name for name in moved)


def test_eu_k_starts_the_end_anew(knows):
    before = copy.deepcopy(knows)
    run(knows, UnlearnConfig("eu_k", lr=1e-9, steps=1, last_k=2, weight_decay=0.0), 7)
    fresh = random_like(before, 7)
    for part in ("layers.1", "layers.2", "norm", "lm_head"):
        for name, value in knows.named_parameters():
            if f".{part}." in f".{name}":
                wanted = dict(fresh.named_parameters())[name]
                assert_close(value, wanted, rtol=0, atol=1e-6)
    old = dict(before.named_parameters())
    for name, value in knows.named_parameters():
        if "embed" in name or "layers.0" in name:
            assert torch.equal(value, old[name])


def test_a_tied_head_gets_its_own_weights():
    model = tiny_llama(tied=True)
    before = model.model.embed_tokens.weight.clone()
    run(model, UnlearnConfig("cf_k", lr=1e-3, steps=2))
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert not torch.equal(model.lm_head.weight, before)


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(InputError, match="fewer blocks"):
        blocks_and_after(tiny_llama(), 4)


def test_a_task_vector_is_subtracted(knows):
    start, learnt = copy.deepcopy(knows), copy.deepcopy(knows)
    settings = {"lr": 1e-3, "steps": 4, "weight_decay": 0.0}
    finetune_(learnt, FORGET, seed=3, **settings)
    run(knows, UnlearnConfig("task_vector", scale=1.5, **settings), seed=3)
    triples = zip(start.parameters(), learnt.parameters(), knows.parameters(), strict=True)
    for before, after, now in triples:
        assert_close(now, before - 1.5 * (after - before), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "ssd", "lora_rank": 2},
        {"method": "salun", "saliency": 0.0},
        {"method": "cf_k", "retain_weight": 0.0},
        {"method": "eu_k", "last_k": 0},
        {"method": "scrub", "temperature": 0.0},
        {"method": "ssd", "dampen_above": 0.0},
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings):
    with pytest.raises(InputError, match="cannot be used"):
        UnlearnConfig(**settings)


def test_rows_that_do_not_go_together_are_refused(knows):
    before = weights(knows)
    cases = [
        ({"relabeled": REFUSAL[[0, 1]]}, "dpo", "answer to prefer"),
        ({"novice": RETAIN}, "elm", "unknown entity"),
        ({}, "elm", "unknown entity"),
        ({}, "salun", "wrong answers"),
    ]
    for extra, method, message in cases:
        with pytest.raises(InputError, match=message):
            unlearn_(knows, FORGET, RETAIN, UnlearnConfig(method), seed=0, **extra)
    assert not changed(before, knows)


def test_what_has_no_configuration_cannot_be_made_anew():
    with pytest.raises(InputError, match="cannot be reinitialized"):
        random_like(torch.nn.Linear(2, 2), 0)
