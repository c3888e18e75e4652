"""Alignment along readouts: its objective by hand, what it leaves, what it refuses."""

import copy

import pytest
import torch
from torch.testing import assert_close

from capture.activations.hidden_states import last_token_states, prompts_only, record_depths
from capture.data.sequences import Sequences, pad
from erasure.unlearning.probe_alignment import (
    PRESETS,
    PgaConfig,
    align_,
    attacker_basis,
    squared_gap,
)
from erasure.unlearning.training.objectives import count_scored, sequence_logprobs
from evidence.errors import InputError
from tests.helpers.tiny_erasure import (
    FORGET,
    RETAIN,
    changed,
    tiny_gpt2,
    tiny_llama,
    tiny_neox,
    weights,
)

CLEAN = RETAIN[[0, 1, 2, 3]]
FAMILIES = {"llama": tiny_llama, "gpt2": tiny_gpt2, "neox": tiny_neox}


def mean_readouts(states, labels):
    """The unit difference of class means at each depth."""
    gap = states[:, labels == 1].mean(1) - states[:, labels == 0].mean(1)
    return gap / gap.norm(dim=1, keepdim=True).clamp(min=1e-12)


def hooks(model):
    """Hooks anywhere in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(params=FAMILIES)
def model(request):
    return FAMILIES[request.param]()


def test_states_are_those_of_a_plain_pass(model):
    batch = pad(prompts_only(FORGET))
    depths = (0, 1, 2)
    found = last_token_states(model, batch, depths)
    with torch.no_grad():
        plain = model(**batch.model_inputs, output_hidden_states=True).hidden_states
    for place, depth in enumerate(depths):
        for row, ids in enumerate(prompts_only(FORGET).ids):
            assert_close(found[place, row], plain[depth][row, len(ids) - 1])


def test_the_loss_is_the_one_in_the_paper(model):
    """One step of plain SGD's worth: the gradients reported are of this objective."""
    depths, seen = (1, 3), {}

    def fit(states, labels):
        seen["readout"] = mean_readouts(states, labels)
        return seen["readout"]

    log = align_(
        copy.deepcopy(model), FORGET, CLEAN, fit, PgaConfig(epochs=1, depths=depths), seed=0
    )
    w = seen["readout"].float()
    ours = last_token_states(model, pad(prompts_only(FORGET)), depths)
    theirs = last_token_states(model, pad(prompts_only(CLEAN)), depths)
    by_hand = torch.zeros(())
    for depth in range(2):
        for pair in range(4):
            gap = w[depth] @ (ours[depth, pair] - theirs[depth, pair])
            by_hand += gap**2 / 8
    batch = pad(CLEAN)
    nats = -sequence_logprobs(model, batch, "all").sum() / count_scored(CLEAN, "all")
    assert log.rows[0]["align"] == pytest.approx(float(by_hand.detach()), rel=1e-4)
    assert log.rows[0]["clean"] == pytest.approx(float(nats.detach()), rel=1e-4)


def test_isotropic_is_the_mean_over_all_directions():
    rng = torch.Generator().manual_seed(0)
    gap = torch.randn(2, 3, 5, generator=rng)
    axes = torch.eye(5).expand(2, 5, 5)
    assert_close(squared_gap(gap, axes) / 5, squared_gap(gap, None))
    rotated = torch.linalg.qr(torch.randn(2, 5, 5, generator=rng)).Q
    assert_close(squared_gap(gap, rotated) / 5, squared_gap(gap, None))


@pytest.mark.parametrize("align", ["readout", "isotropic"])
def test_alignment_closes_the_gap_along_what_it_aligns(knows, align):
    config = PgaConfig(
        align=align,
        align_weight=1e4,  # Adam takes steps of one size; the rest must not drown it
        clean_weight=0.0,
        lr=1e-3,
        epochs=40,
        refit_every=100,
    )
    log = align_(knows, FORGET, CLEAN, mean_readouts, config, seed=0)
    assert log.rows[-1]["align"] < 0.1 * log.rows[0]["align"]


def test_the_clean_texts_are_trained_on_as_they_stand(knows):
    config = PgaConfig(align_weight=0.0, lr=1e-3, epochs=20)
    log = align_(knows, FORGET, CLEAN, mean_readouts, config, seed=0)
    assert log.rows[-1]["clean"] < 0.5 * log.rows[0]["clean"]


def test_readouts_are_fitted_anew_on_the_model_as_it_is():
    seen = []

    def fit(states, labels):
        seen.append(states.clone())
        return mean_readouts(states, labels)

    config = PgaConfig(epochs=7, refit_every=3, lr=1e-2)
    align_(tiny_llama(), FORGET, CLEAN, fit, config, seed=0)
    assert len(seen) == 3  # epochs 0, 3 and 6
    assert not torch.equal(seen[0], seen[1])


def test_codes_drawn_anew_are_asked_for_every_epoch():
    asked = []

    def clean(epoch):
        asked.append(epoch)
        return CLEAN

    align_(tiny_llama(), FORGET, clean, mean_readouts, PgaConfig(epochs=3), seed=0)
    assert set(asked) == {0, 1, 2}


def test_adapters_are_merged_and_nothing_else_moves():
    model = tiny_llama()
    before, names = weights(model), set(weights(model))
    config = PgaConfig(epochs=2, lr=1e-2, lora_rank=2)
    align_(model, FORGET, CLEAN, mean_readouts, config, seed=0)
    moved = changed(before, model)
    assert set(weights(model)) == names
    assert moved and all("proj" in name for name in moved)


def test_the_same_seed_gives_the_same_weights():
    first, second = tiny_llama(), tiny_llama()
    config = PgaConfig(epochs=3, refit_every=2, lora_rank=2)
    for model in (first, second):
        align_(model, FORGET, CLEAN, mean_readouts, config, seed=4)
    assert not changed(weights(first), second)


def test_chunks_change_nothing(monkeypatch):
    logs = []
    for tokens in (4096, 8):
        monkeypatch.setattr("erasure.unlearning.training.loop.CHUNK_TOKENS", tokens)
        config = PgaConfig(epochs=3, refit_every=2, lr=1e-2)
        logs.append(align_(tiny_gpt2(), FORGET, CLEAN, mean_readouts, config, seed=0))
    for one, two in zip(logs[0].rows, logs[1].rows, strict=True):
        assert one["align"] == pytest.approx(two["align"], rel=1e-3, abs=1e-7)
        assert one["clean"] == pytest.approx(two["clean"], rel=1e-4)


def test_the_attacker_finds_orthonormal_readouts_of_what_is_left():
    rng = torch.Generator().manual_seed(1)
    states = torch.randn(2, 20, 6, generator=rng, dtype=torch.float64)
    labels = torch.tensor([1, 0] * 10)
    basis = attacker_basis(mean_readouts, states, labels, 3)
    eye = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    assert_close(basis @ basis.transpose(1, 2), eye, rtol=0, atol=1e-10)
    assert_close(basis[:, 0], mean_readouts(states, labels))


def test_a_depth_where_all_rows_are_equal_has_no_readout():
    states = torch.ones(1, 6, 4, dtype=torch.float64)
    basis = attacker_basis(mean_readouts, states, torch.tensor([1, 0] * 3), 2)
    assert not basis.any()


def test_hooks_go_whatever_happens(model):
    before = hooks(model)

    def fails(states, labels):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        align_(model, FORGET, CLEAN, fails, PgaConfig(epochs=1), seed=0)
    with pytest.raises(ValueError, match="inside"), record_depths(model, (0, 2)):
        raise ValueError("inside")
    align_(model, FORGET, CLEAN, mean_readouts, PgaConfig(epochs=1), seed=0)
    assert hooks(model) == before
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_presets_are_settings_that_can_be_used():
    assert PRESETS["pythia"].lora_rank == 16 and PRESETS["toy"].lora_rank is None
    assert PRESETS["adversarial"].rank > 1


EMPTY = Sequences((), ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memorized": EMPTY}, "must pair up"),
        ({"clean": RETAIN}, "must pair up. Expected .*; got 4 and 8"),
        ({"config": PgaConfig(depths=(0, 9))}, r"Expected some of 0 .* to 3"),
        ({"config": PgaConfig(depths=())}, "does not have these depths.*got none"),
        ({"config": PgaConfig(rank=50)}, "rank cannot be used. Expected 1 to 24"),
        ({"fit": lambda states, labels: states[:, 0] * float("nan")}, "a probe is not finite"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    given = {
        "memorized": FORGET,
        "clean": CLEAN,
        "fit": mean_readouts,
        "config": PgaConfig(epochs=1),
    } | change
    with pytest.raises(InputError, match=message):
        align_(tiny_llama(), **given, seed=0)


@pytest.mark.parametrize(
    "setting",
    [
        {"align": "probe"},
        {"align_weight": -1.0},
        {"clean_weight": -1.0},
        {"lr": 0.0},
        {"epochs": 0},
        {"refit_every": 0},
        {"rank": 0},
        {"lora_rank": 0},
    ],
)
def test_settings_are_checked(setting):
    with pytest.raises(InputError, match="cannot be used"):
        PgaConfig(**setting)
