"""Restoration of image classes: what comes back, what must not, how it counts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attribution.sae.autoencoder import Sae
from audits.axes.base import JudgementContext
from audits.axes.restoration.autoencoder import published_site, train_image_autoencoder
from audits.axes.restoration.axis import Measurement, judge
from audits.axes.restoration.image_trial import (
    N_UNSEEN_CLASSES,
    half_rows,
    only_class,
    steer_images,
    unseen_classes,
)
from audits.axes.restoration.net_rate import CHANCE_CONTROL, image_net_rate
from audits.axes.restoration.scoring import named_as_class
from audits.axes.restoration.search import Choice, SideEffects
from audits.axes.restoration.state_injection import ALPHAS, image_injection, inject_images
from audits.axes.restoration.steering import (
    AMPLIFIED_READING,
    CLASS_MEAN,
    LOGPROB_GRADIENT,
    ImageSteering,
    LinearReading,
    image_steering_sites,
    logprob_gradient,
    steering_hook,
)
from audits.axes.restoration.trial import Arm, Trial
from audits.core.config import make_config
from audits.core.preflight import Damage
from audits.core.roles import Role
from audits.core.scores import ScoreTable
from audits.modalities.image_sets import image_table
from capture.checkpoints.open import open_checkpoint
from capture.network.hooks import count_hooks
from capture.network.sites import as_positions, find_image_sites
from capture.scoring.class_logits import image_states
from evidence.errors import InputError
from evidence.typed_json import from_json, to_json
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
    one = steer_images(original, candidate(digits_zoo, kind), *sets.values(), seed=0)
    known = named_as_class(original, sets["forget_test"], {}, find_image_sites(original))
    table = image_table(known, sets["forget_test"])
    return one, image_net_rate(one, table.by_entity()), table


@pytest.fixture(scope="module")
def runs(digits_zoo, pair):
    return {kind: tried(digits_zoo, pair, kind) for kind in ("logit_mask", "twin")}


def test_a_suppression_of_the_head_is_steered_back(runs):
    one, net, _ = runs["logit_mask"]
    assert net.rate > 0.8 and net.residual > 0.6 and net.net > 0.2
    assert one.values("named", Arm.PLAIN).mean[0] < 0.1
    for choice in one.choices:
        assert choice.effects.never_taught <= 0.02 + 1e-9


def test_a_retrain_is_not_and_the_original_has_nothing_to_restore(runs, pair):
    _, net, table = runs["twin"]
    assert net.net < 0.2 and net.interval[0] < 0.2
    original, sets = pair
    rows = {name: images.select(range(16)) for name, images in sets.items()}
    rows["never"] = sets["never"].select(sets["never"].labels == -1)
    one = steer_images(original, original, *rows.values(), seed=0)
    assert image_net_rate(one, table.by_entity()) is None
    assert count_hooks(original) == 0


def test_every_control_searches_for_itself(runs, pair):
    one = runs["twin"][0]
    by_arm = one.scores["named"]
    assert set(by_arm) == set(Arm) - {Arm.RETAIN}
    forgotten = tuple(pair[1]["forget_test"].ids)
    assert all(by_arm[arm].entities == forgotten for arm in set(by_arm) - {Arm.NEVER_TAUGHT})
    assert len(one.choices) == 2
    assert set(one.never_taught_classes) == set(range(N_UNSEEN_CLASSES))
    names = by_arm[Arm.NEVER_TAUGHT].entities
    assert len(set(names)) == len(names) == len(one.never_taught_classes)
    for choice in one.choices:
        assert choice.effects is None or choice.effects.never_taught <= 0.02 + 1e-9


def test_the_same_call_gives_the_same_figures(digits_zoo, pair, runs):
    assert to_json(tried(digits_zoo, pair, "logit_mask")[0]) == to_json(runs["logit_mask"][0])


IDS, INVENTED = tuple("abcdefgh"), tuple("stuvwxyz")


def of(names, *hits):
    return ScoreTable(names, np.array(hits, dtype=float)[:, None])


def trial(steered=(1,) * 6 + (0,) * 2):
    by_arm = {
        Arm.PLAIN: of(IDS, *[0] * 8),
        Arm.STEERED: of(IDS, *steered),
        Arm.OWN_END: of(IDS, 1, 1, *[0] * 6),
        Arm.RANDOM: of(IDS, *[0] * 8),
        Arm.OTHERS: of(IDS, 1, 1, *[0] * 6),
        Arm.NEVER_TAUGHT: of(INVENTED, 1, *[0] * 7),
    }
    choice = Choice(0.75, SideEffects(0.9, 0.1), "a route", "final", 2.0, "own")
    return Trial({"named": by_arm}, (choice,), never_taught_classes=(0, 0, 0, 0, 1, 1, 1, 1))


KNOWN = of(IDS, *[1] * 8)


def test_the_net_rate_is_the_rate_less_the_worst_control():
    net = image_net_rate(trial(), KNOWN.by_entity())
    assert net is not None
    assert net.rate == 0.75 and net.net == 0.5 and net.own_rate == 0.25
    assert net.residual == pytest.approx(0.5 / 0.75)
    assert net.controls == {"random": 0.0, "others": 0.25, "never_taught": 0.125}
    assert net.kinds == (0.25, 0.0)
    assert net.interval[0] < 0.5 < net.interval[1]
    other = trial((1,) * 4 + (0,) * 4)
    beside = image_net_rate(trial(), KNOWN.by_entity(), [other])
    assert beside is not None and beside.worst_control == "reference-1" and beside.net == 0.25
    # Half known to begin with: twice as much of it was restored.
    half = image_net_rate(trial(), of(IDS, *[1] * 6, 0, 0).by_entity())
    assert half is not None and half.rate == 1.0


IMAGES = JudgementContext(make_config({"seed": 0}), "images", Damage({}, ()))


def test_judging_what_is_stored_and_judging_twice_are_the_same():
    trials = {Role(name): trial() for name in ("unlearned", "planted", "reference-1")}
    whole = Measurement({"named": KNOWN}, trials)
    stored = json.loads(json.dumps(to_json(whole), sort_keys=True))
    first, *rest = (judge(each, IMAGES) for each in (whole, whole, from_json(Measurement, stored)))
    assert all(each == first for each in rest)
    assert [each.metric for each in first.readings] == ["named", "named"]
    assert first.readings[0].floor_kind == "reference" and first.readings[0].residual == 0.0
    assert first.details["net_rate"]["worst_control"] == "reference-1"
    assert first.details["choices"]["unlearned"] == [
        {"variant": "own", "method": "a route", "site": "final", "strength": 2.0}
        | {"share": 0.75, "cost": {"retain": 0.9, "never_taught": 0.1}}
    ]
    assert first.n_entities == 8 and "of the lost images" in first.notes[-1]


def test_what_decides_is_the_floor_and_the_uninformed_edits():
    def status(**arms):
        one = trial()
        one.scores["named"].update({Arm[name]: table for name, table in arms.items()})
        return judge(Measurement({"named": KNOWN}, {Role.CANDIDATE: one}), IMAGES)

    assert status(STEERED=KNOWN, OTHERS=of(IDS, *[0] * 8)).status == "retained"
    lucky = status(OTHERS=of(IDS, *[1] * 5, *[0] * 3))
    assert lucky.status == "control_failed"
    assert lucky.notes[0] == f"Control failed: {CHANCE_CONTROL}."
    # Where never-taught classes are steered to as well, nothing is said, whatever the controls.
    assert status(NEVER_TAUGHT=of(INVENTED, *[1] * 8)).status == "no_power"


def test_changes_are_what_they_say(pair):
    original, sets = pair
    where = find_image_sites(original)
    both = sets["forget_test"].select(range(12)) + sets["retain_test"].select(range(60))
    label = only_class(sets["forget_test"])
    sites = image_steering_sites(where)
    states = image_states(original, both, sites, where)
    mine = torch.from_numpy(both.labels == label)
    fitted = ImageSteering(
        states,
        {site: value + 1 for site, value in states.items()},
        lambda c, site: logprob_gradient(original, both, c, site, where),
        both.labels,
    )
    site = sites[0]
    by_hand = states[site][mine].mean(0) - states[site][~mine].mean(0)
    torch.testing.assert_close(fitted.edit(CLASS_MEAN, site, label), by_hand)
    slope = fitted.edit(LOGPROB_GRADIENT, site, label)
    assert isinstance(slope, torch.Tensor)
    torch.testing.assert_close(slope.norm(), by_hand.norm())
    assert fitted.edit(AMPLIFIED_READING, site, label) is None
    reading = fitted.edit(AMPLIFIED_READING, "final", label)
    assert isinstance(reading, LinearReading)
    # The reader is the original's: 0 on the mean of the rest, 1 on the class's.
    flat = states["final"] + 1
    read = (flat - reading.offset) @ reading.probe
    assert float(read[~mine].mean()) == pytest.approx(0, abs=1e-3)
    assert float(read[mine].mean()) == pytest.approx(1, abs=1e-3)
    for method, edit in ((LOGPROB_GRADIENT, slope), (AMPLIFIED_READING, reading)):
        place = site if method == LOGPROB_GRADIENT else "final"
        rotated = fitted.random_edit(method, place, label, np.random.default_rng(0))
        size = edit.probe if isinstance(edit, LinearReading) else edit
        drawn = rotated.probe if isinstance(rotated, LinearReading) else rotated
        assert isinstance(drawn, torch.Tensor) and isinstance(size, torch.Tensor)
        torch.testing.assert_close(drawn.norm(), size.norm())
        assert not torch.allclose(drawn, size)
    # The control reads another class, and adds the direction of this one.
    other = int(both.labels[both.labels != label][0])
    of_other = fitted.edit(AMPLIFIED_READING, "final", label, other)
    assert isinstance(of_other, LinearReading)
    torch.testing.assert_close(of_other.direction, reading.direction)
    assert not torch.allclose(of_other.probe, reading.probe)
    torch.testing.assert_close(
        fitted.edit(CLASS_MEAN, site, label, other), fitted.edit(CLASS_MEAN, site, other)
    )
    # A step along the slope makes the class likelier, as a finite difference says.
    step = fitted.edit(LOGPROB_GRADIENT, "final", label)
    assert step is not None
    before = named_as_class(original, both, {}, where, label).mean()
    after = named_as_class(original, both, {"final": steering_hook(step, 5.0)}, where, label).mean()
    assert after > before


def test_halves_share_no_image_and_leave_none_out():
    one, other = half_rows(41, np.random.default_rng(0))
    assert sorted([*one, *other]) == list(range(41))
    assert [len(each) for each in half_rows(41, np.random.default_rng(0), 10)] == [5, 5]


@pytest.fixture(scope="module")
def experts(digits_zoo, pair, tmp_path_factory):
    world = digits_zoo[0].world
    taught = world.images("forget") + world.images("retain")
    return train_image_autoencoder(pair[0], taught, tmp_path_factory.mktemp("saes"), 0)


def test_the_published_test_does_not_see_what_is_hidden_after_its_site(digits_zoo, pair, experts):
    original, sets = pair
    forget, retain = sets["forget_test"], sets["retain_test"]
    assert experts.fvu < 0.3 and set(experts.experts) == set(map(str, range(10)))
    for kind in ("head_only", "logit_mask"):
        model = candidate(digits_zoo, kind)
        found = inject_images(original, model, forget, retain, experts, 0)
        assert found is not None
        # Its states there are the original's, so nothing is carried over.
        assert found.arms["published"].rate == (0.0,) * len(ALPHAS)
        assert "cls" not in found.arms  # a CNN has no class token
        assert count_hooks(model) == 0
    assert inject_images(original, original, forget, retain, experts, 0) is None


def test_carrying_everything_over_at_alpha_one_gives_the_originals_states():
    torch.manual_seed(0)
    model = new_classifier(DigitsConfig(layers=2, width=8, heads=2, family="vit"), 0)
    where = find_image_sites(model)
    site = published_site(where.n_layers)

    eye = torch.eye(8)
    config = SimpleNamespace(d_in=8, d_sae=8, architecture=lambda: "plain")
    sae = Sae(SimpleNamespace(W_enc=eye, W_dec=eye, cfg=config), site)
    donor, value = torch.randn(2, 3, 17, 8)
    every = np.arange(8)
    whole = image_injection(sae, donor, every, 1.0, True)(value)
    torch.testing.assert_close(whole, donor)
    token = image_injection(sae, donor, None, 1.0, True)(value)
    torch.testing.assert_close(token[:, 0], donor[:, 0])
    torch.testing.assert_close(token[:, 1:], value[:, 1:])
    half = image_injection(sae, donor, np.array([2]), 0.5, False)(value)
    torch.testing.assert_close(half[:, 1:, 2], (donor + value)[:, 1:, 2] / 2)
    torch.testing.assert_close(half[..., [0, 1, 3]], value[..., [0, 1, 3]])
    # Random latents are matched in norm, patch by patch.
    sized = image_injection(sae, donor, np.array([5]), 1.0, False, np.array([2]))(value)
    torch.testing.assert_close((sized - value)[:, 1:].norm(dim=-1), (donor - value)[:, 1:, 2].abs())
    assert site == "resid.1"
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
        steer_images(pair[0], pair[0], *few(sets), seed=0)
    with pytest.raises(InputError, match="not a finite number"):
        steering_hook(torch.ones(3), torch.tensor([1.0, torch.inf]))
    states = {"final": torch.tensor([[torch.inf], [0.0]])}
    broken = ImageSteering(states, states, lambda label, site: torch.ones(1), np.array([0, 1]))
    with pytest.raises(InputError, match="at final is not finite"):
        broken.edit(CLASS_MEAN, "final", 0)
