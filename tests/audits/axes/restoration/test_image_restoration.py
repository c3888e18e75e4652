"""Restoration of image classes: what comes back, what must not, how it counts."""

import numpy as np
import pytest
import torch

from audits.axes.restoration.image_state_injection import (
    ALPHAS,
    Experts,
    _carrying,
    find_experts,
    inject_states,
    published_site,
)
from audits.axes.restoration.image_steering import (
    AMPLIFIED_READING,
    CLASS_MEAN,
    LOGPROB_GRADIENT,
    LinearSteeringEdit,
    SteeringFit,
    logprob_gradient,
    named_as_class,
    randomly_rotated,
    split_in_halves,
    steering_hook,
    steering_sites,
)
from audits.axes.restoration.image_trial import (
    N_UNSEEN_CLASSES,
    net_rate,
    only_class,
    restore_images,
    unseen_classes,
)
from capture.checkpoints.open import open_checkpoint
from capture.network.hooks import count_hooks
from capture.network.sites import as_positions, find_image_sites
from capture.scoring.class_logits import image_states
from evidence.errors import InputError
from testbeds.worlds.digits import DigitsConfig, new_classifier

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def pair(digits_zoo):
    world = digits_zoo[0].world
    sets = {part: world.images(part) for part in ("forget_test", "retain_test")}
    original, forget = open_checkpoint(world.original).load(), sets["forget_test"]
    label = int(forget.labels[0])
    sets["never"] = unseen_classes(original, sets["retain_test"], label, len(forget), seed=0)
    return original, sets


def candidate(digits_zoo, kind):
    return open_checkpoint(next(e for e in digits_zoo if e.kind == kind).model).load()


def tried(digits_zoo, pair, kind):
    original, sets = pair
    run = restore_images(original, candidate(digits_zoo, kind), *sets.values(), seed=0)
    known = named_as_class(original, sets["forget_test"], {}, find_image_sites(original))
    return run, net_rate(run, known), known


@pytest.fixture(scope="module")
def runs(digits_zoo, pair):
    return {kind: tried(digits_zoo, pair, kind) for kind in ("logit_mask", "twin")}


def test_a_suppression_of_the_head_is_steered_back(runs):
    run, net, _ = runs["logit_mask"]
    assert net["rate"] > 0.8 and net["residual"] > 0.6 and net["net"] > 0.2
    assert np.mean(run["plain"]) < 0.1
    for choice in run["choices"]:
        assert choice["cost"]["unknown"] <= 0.02 + 1e-9


def test_a_retrain_is_not_and_the_original_has_nothing_to_restore(runs, pair):
    _, net, known = runs["twin"]
    assert net["net"] < 0.2 and net["interval"][0] < 0.2
    original, sets = pair
    rows = {name: images.select(range(16)) for name, images in sets.items()}
    rows["never"] = sets["never"].select(sets["never"].labels == -1)
    run = restore_images(original, original, *rows.values(), seed=0)
    assert net_rate(run, known) is None
    assert count_hooks(original) == 0


def test_every_control_searches_for_itself(runs):
    run = runs["twin"][0]
    assert len(run["own"]) == len(run["steered"]) == len(run["ids"])
    assert len(run["choices"]) == 2 and len(run["never_choices"]) == 2 * N_UNSEEN_CLASSES
    assert set(run["never_kinds"]) == set(range(N_UNSEEN_CLASSES))
    assert len(set(run["never_ids"])) == len(run["never_ids"])
    # Each is allowed the same costs, and none of them cost more.
    for choice in (*run["choices"], *run["never_choices"]):
        cost = choice["cost"]
        assert cost is None or cost["unknown"] <= 0.02 + 1e-9


def test_the_same_call_gives_the_same_figures(digits_zoo, pair, runs):
    assert tried(digits_zoo, pair, "logit_mask")[0] == runs["logit_mask"][0]


def test_the_net_rate_is_the_rate_less_the_worst_control():
    run = {
        "ids": list("abcdefgh"),
        "never_ids": list("stuvwxyz"),
        "never_kinds": [0, 0, 0, 0, 1, 1, 1, 1],
        "plain": [0.0] * 8,
        "steered": [1.0] * 6 + [0.0] * 2,
        "own": [1.0] * 2 + [0.0] * 6,
        "random": [0.0] * 8,
        "others": [1.0, 1.0] + [0.0] * 6,
        "never": [1.0] + [0.0] * 7,
    }
    net = net_rate(run, np.ones(8))
    assert net["rate"] == 0.75 and net["net"] == 0.5 and net["own_rate"] == 0.25
    assert net["residual"] == pytest.approx(0.5 / 0.75)
    assert net["controls"] == {"random": 0.0, "others": 0.25, "never_taught": 0.125}
    assert net["kinds"] == [0.25, 0.0]
    assert net["interval"][0] < 0.5 < net["interval"][1]
    other = {"steered": [1.0] * 4 + [0.0] * 4, "ids": run["ids"]}
    beside = net_rate(run, np.ones(8), [other])
    assert beside["worst_control"] == "reference-1" and beside["net"] == 0.25
    # Half known to begin with: twice as much of it was restored.
    half = net_rate(run, np.array([1.0] * 6 + [0.0] * 2))
    assert half["rate"] == 1.0


def test_changes_are_what_they_say(pair):
    original, sets = pair
    where = find_image_sites(original)
    both = sets["forget_test"].select(range(12)) + sets["retain_test"].select(range(60))
    label = only_class(sets["forget_test"])
    sites = steering_sites(where)
    states = image_states(original, both, sites, where)
    mine = torch.from_numpy(both.labels == label)
    fitted = SteeringFit(
        states,
        {site: value + 1 for site, value in states.items()},
        lambda c, site: logprob_gradient(original, both, c, site, where),
        both.labels,
    )
    site = sites[0]
    by_hand = states[site][mine].mean(0) - states[site][~mine].mean(0)
    torch.testing.assert_close(fitted.steering_edit(CLASS_MEAN, site, label), by_hand)
    slope = fitted.steering_edit(LOGPROB_GRADIENT, site, label)
    torch.testing.assert_close(slope.norm(), by_hand.norm())
    assert fitted.steering_edit(AMPLIFIED_READING, site, label) is None
    reading = fitted.steering_edit(AMPLIFIED_READING, "final", label)
    assert isinstance(reading, LinearSteeringEdit)
    # The reader is the original's: 0 on the mean of the rest, 1 on the class's.
    flat = states["final"] + 1
    read = (flat - reading.offset) @ reading.probe
    assert float(read[~mine].mean()) == pytest.approx(0, abs=1e-3)
    assert float(read[mine].mean()) == pytest.approx(1, abs=1e-3)
    for edit in (slope, reading):
        rotated = randomly_rotated(edit, np.random.default_rng(0))
        size = edit.probe if isinstance(edit, LinearSteeringEdit) else edit
        drawn = rotated.probe if isinstance(rotated, LinearSteeringEdit) else rotated
        torch.testing.assert_close(drawn.norm(), size.norm())
        assert not torch.allclose(drawn, size)
    # A step along the slope makes the class likelier, as a finite difference says.
    before = named_as_class(original, both, {}, where, label).mean()
    after = named_as_class(
        original,
        both,
        {"final": steering_hook(fitted.steering_edit(LOGPROB_GRADIENT, "final", label), 5.0)},
        where,
        label,
    ).mean()
    assert after > before


def test_halves_share_no_image_and_leave_none_out(pair):
    images = pair[1]["retain_test"]
    one, other = split_in_halves(images, np.random.default_rng(0))
    assert sorted(one.ids + other.ids) == sorted(images.ids)
    assert not set(one.ids) & set(other.ids)


@pytest.fixture(scope="module")
def experts(digits_zoo, pair, tmp_path_factory):
    world = digits_zoo[0].world
    taught = world.images("forget") + world.images("retain")
    return find_experts(pair[0], taught, tmp_path_factory.mktemp("saes"), 0)


def test_the_published_test_does_not_see_what_is_hidden_after_its_site(digits_zoo, pair, experts):
    original, sets = pair
    forget, retain = sets["forget_test"], sets["retain_test"]
    assert experts.fvu < 0.3 and set(experts.latents) == set(range(10))
    for kind in ("head_only", "logit_mask"):
        model = candidate(digits_zoo, kind)
        found = inject_states(original, model, forget, retain, experts, 0)
        # Its states there are the original's, so nothing is carried over.
        assert found["rates"]["published"] == [0.0] * len(ALPHAS)
        assert found["rates"]["cls"] is None  # a CNN has no class token
        assert count_hooks(model) == 0
    assert inject_states(original, original, forget, retain, experts, 0) is None


def test_carrying_everything_over_at_alpha_one_gives_the_originals_states():
    torch.manual_seed(0)
    model = new_classifier(DigitsConfig(layers=2, width=8, heads=2, family="vit"), 0)
    where = find_image_sites(model)
    site = published_site(where.n_layers)

    class Plain:
        d_sae = 8
        decoder = torch.eye(8)

        class module:
            W_enc = torch.eye(8)

    donor, value = torch.randn(2, 3, 17, 8)
    every = np.arange(8)
    sae = Plain()
    whole = _carrying(sae, donor, every, 1.0, True, True, None)(value)
    torch.testing.assert_close(whole, donor)
    token = _carrying(sae, donor, every, 1.0, True, False, None)(value)
    torch.testing.assert_close(token[:, 0], donor[:, 0])
    torch.testing.assert_close(token[:, 1:], value[:, 1:])
    half = _carrying(sae, donor, np.array([2]), 0.5, False, True, None)(value)
    torch.testing.assert_close(half[:, 1:, 2], (donor + value)[:, 1:, 2] / 2)
    torch.testing.assert_close(half[..., [0, 1, 3]], value[..., [0, 1, 3]])
    # Random latents are matched in norm, patch by patch.
    sized = _carrying(sae, donor, np.array([5]), 1.0, False, True, np.array([2]))(value)
    torch.testing.assert_close((sized - value)[:, 1:].norm(dim=-1), (donor - value)[:, 1:, 2].abs())
    assert site == "resid.1" and Experts(sae, {}, 0.0).fvu == 0.0
    assert as_positions(donor).shape == donor.shape


def few(sets):
    """The sets, with too few images of every never-taught class."""
    small = [np.flatnonzero(sets["never"].labels == -1 - k)[:4] for k in range(N_UNSEEN_CLASSES)]
    never = sets["never"].select(np.concatenate(small))
    return sets["forget_test"], sets["retain_test"], never


def test_bad_input_is_one_clear_error(pair):
    _, sets = pair
    with pytest.raises(InputError, match="forget images cannot be used"):
        only_class(sets["retain_test"])
    with pytest.raises(InputError, match="forget images cannot be used"):
        only_class(sets["forget_test"].select(range(3)))
    with pytest.raises(InputError, match="large enough to be steered to"):
        restore_images(*pair[:1], *pair[:1], *few(sets), seed=0)
    with pytest.raises(InputError, match="not finite"):
        steering_hook(torch.ones(3), float("nan"))
    with pytest.raises(InputError, match="not finite"):
        steering_hook(torch.tensor([1.0, torch.inf]), 1.0)
