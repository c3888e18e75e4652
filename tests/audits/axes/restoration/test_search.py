"""The search for the strongest change: its limits, its order, and what it steers."""

import numpy as np
import pytest
import torch

from audits.axes.restoration.image_trial import (
    ORIGINAL_END,
    OWN_END,
    SideEffectLimits,
    fit_steering,
    half_rows,
    model_variants,
    named_under,
    search,
    unseen_classes,
    with_original_end,
)
from audits.axes.restoration.search import MAX_DROP, STRENGTHS
from audits.axes.restoration.steering import (
    IMAGE_METHODS,
    LOGPROB_GRADIENT,
    image_steering_sites,
    steering_hook,
)
from capture.checkpoints.open import open_checkpoint
from capture.network.hooks import count_hooks, record
from capture.network.sites import find_image_sites
from capture.scoring.class_logits import pixel_logits
from testbeds.worlds.digits import DigitsConfig, new_classifier


@pytest.fixture(scope="module")
def scene(digits_zoo):
    """Original, candidates by kind, and halves of what they are asked."""
    world = digits_zoo[0].world
    original = open_checkpoint(world.original).load()
    rng = np.random.default_rng(0)
    forget, kept = world.images("forget_test"), world.images("retain_test")
    forget = forget.select(half_rows(len(forget), rng)[0])
    kept = kept.select(half_rows(len(kept), rng, 120)[0])
    label = int(forget.labels[0])
    unknown = unseen_classes(original, world.images("retain_test"), label, 12, 0)
    models = {e.kind: open_checkpoint(e.model).load() for e in digits_zoo}
    return original, models, forget, kept, unknown, label


def of(scene, kind):
    """What may be run, what was fitted, and the guard, of a kind."""
    original, models, forget, kept, unknown, label = scene
    bodies = model_variants(models[kind], original)
    fitted = fit_steering(bodies[0], original, forget + kept)
    return bodies, fitted, SideEffectLimits.of(bodies[0], kept, unknown, label)


def by_class(fitted, label):
    return lambda route, site: fitted.edit(route, site, label)


def test_the_originals_end_undoes_an_edit_of_the_end_alone(scene):
    original, models, forget, *_ = scene
    where = find_image_sites(original)
    right = pixel_logits(original, forget.pixels, {}, where)
    for kind in ("head_only", "logit_mask", "twin"):
        model = models[kind]
        before = {name: t.clone() for name, t in model.state_dict().items()}
        ended = with_original_end(model, original)
        assert ended is not None
        found = pixel_logits(ended, forget.pixels, {}, find_image_sites(ended))
        # A retrain's lower blocks are its own, so its states are, too.
        assert torch.equal(found, right) == (kind != "twin")
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, before[name])
        below = [n for n in before if not torch.equal(ended.state_dict()[n], before[n])]
        assert below and not any("layers.0." in name for name in below)


@pytest.mark.parametrize("family", ["vit", "cnn"])
def test_the_end_is_the_last_block_and_all_after_it(family):
    config = DigitsConfig(layers=3, width=8, heads=2, family=family)
    one, other = new_classifier(config, 0), new_classifier(config, 1)
    ended = with_original_end(one, other)
    assert ended is not None
    where = find_image_sites(one)
    pixels = torch.randn(5, 1, 8, 8)
    # The other's end, fed with this one's states: the same by hand.
    entering = where.of("resid")[-2]
    with record(one, [entering], known_sites=where) as states, torch.no_grad():
        one(pixels)
    edits = {entering: lambda _value: states[entering]}
    by_hand = pixel_logits(other, pixels, edits, find_image_sites(other))
    torch.testing.assert_close(
        pixel_logits(ended, pixels, {}, where=find_image_sites(ended)), by_hand
    )


def test_an_end_built_otherwise_is_not_put_in(scene):
    model = scene[1]["twin"]
    wide = new_classifier(DigitsConfig(layers=2, width=12, heads=2, family="cnn"), 0)
    assert with_original_end(model, wide) is None
    assert [body.name for body in model_variants(model, wide)] == [OWN_END]


def test_several_strengths_at_once_are_each_by_itself(scene):
    original, _, forget, _, _, label = scene
    where = find_image_sites(original)
    steering = of(scene, "twin")[1].edit(LOGPROB_GRADIENT, "final", label)
    assert steering is not None
    pixels = forget.pixels[:4]
    sizes = torch.tensor(STRENGTHS).repeat_interleave(len(pixels))
    rows = pixels.repeat(len(STRENGTHS), 1, 1, 1)
    together = pixel_logits(original, rows, {"final": steering_hook(steering, sizes)}, where)
    for part, strength in zip(together.split(len(pixels)), STRENGTHS, strict=True):
        alone = pixel_logits(original, pixels, {"final": steering_hook(steering, strength)}, where)
        torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-4)


def slow(bodies, fitted, images, kept, unknown, label):
    """The same search, every strength in a pass of its own and every cost in full."""
    own = bodies[0]

    def shares(body, edits):
        return (body.named(kept, None, edits).mean(), body.named(unknown, label, edits).mean())

    base = shares(own, {})

    def allowed(body, edits):
        right, strange = shares(body, edits)
        drop = MAX_DROP + 1e-9
        return right >= base[0] - drop and strange <= base[1] + drop

    best = (float(own.named(images, label, {}).mean()), OWN_END, None, None, 0.0)
    share = float(bodies[1].named(images, label, {}).mean())
    if share > best[0] and allowed(bodies[1], {}):
        best = (share, ORIGINAL_END, None, None, 0.0)
    for route in IMAGE_METHODS:
        for site in image_steering_sites(own.sites):
            steering = fitted.edit(route, site, label)
            if steering is None or best[0] == 1.0:
                continue
            for strength in STRENGTHS:
                edits = {site: steering_hook(steering, strength)}
                share = float(own.named(images, label, edits).mean())
                if share > best[0]:
                    if not allowed(own, edits):
                        break
                    best = (share, OWN_END, route, site, strength)
    return best


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("kind", ["twin", "head_only"])
def test_the_search_finds_what_a_plain_loop_finds(scene, kind, ended):
    _, models, forget, kept, unknown, label = scene
    bodies, fitted, guard = of(scene, kind)
    # Without the original's end: the candidate twice, which is never better than once.
    bodies = bodies if ended else [bodies[0], bodies[0]]
    found = search(bodies, forget, guard, by_class(fitted, label))
    share, *how = slow(bodies, fitted, forget, kept, unknown, label)
    choice = found.choice
    assert choice.objective == pytest.approx(share)
    assert [choice.variant, choice.method, choice.site, choice.strength] == how
    distinct = list({each.name: each for each in bodies}.values())
    named = named_under(found, distinct, forget, label)
    assert named.mean() == pytest.approx(choice.objective)
    if choice.effects is not None and found.steering is None:
        right = bodies[1].named(kept, None, {}).mean()
        assert choice.effects.retain == pytest.approx(right)
    assert count_hooks(models[kind]) == 0


def test_unknown_images_limit_what_may_be_chosen(scene):
    _, _, forget, kept, _, label = scene
    bodies, fitted, guard = of(scene, "twin")
    make = by_class(fitted, label)
    free = search(bodies, forget, SideEffectLimits.of(bodies[0], kept, None, label), make)
    held = search(bodies, forget, guard, make)
    assert held.choice.objective <= free.choice.objective
    # Guarded by the very images that are to be called the class, nothing may be.
    bound = search(bodies, forget, SideEffectLimits.of(bodies[0], kept, forget, label), make)
    assert bound.choice.objective <= MAX_DROP + 1e-9


def test_the_guard_stops_early_only_where_the_rest_cannot_save_it(scene):
    _, _, _, kept, unknown, label = scene
    bodies, fitted, guard = of(scene, "twin")
    steering = fitted.edit(LOGPROB_GRADIENT, "final", label)
    assert steering is not None
    refused = 0
    for strength in (0.0, *STRENGTHS):
        edits = {"final": steering_hook(steering, strength)}
        wrong = (1 - bodies[0].named(kept, None, edits)).sum()
        strange = bodies[0].named(unknown, label, edits).sum()
        cost = guard.effects(bodies[0], edits)
        within = wrong <= guard.max_wrong and strange <= guard.max_named
        assert (cost is not None) == within
        refused += cost is None
        if cost is not None:
            assert cost.retain == pytest.approx(1 - wrong / len(kept))
            assert cost.never_taught == pytest.approx(strange / len(unknown))
    assert 0 < refused <= len(STRENGTHS)


def test_nothing_is_chosen_where_no_change_can_be_fitted(scene):
    _, _, forget, _, _, label = scene
    bodies, _, guard = of(scene, "head_only")
    found = search(bodies[:1], forget, guard, lambda route, site: None)
    choice = found.choice
    assert (choice.method, choice.site, choice.strength) == (None, None, 0.0)
    assert choice.effects is None and choice.variant == OWN_END
    plain = bodies[0].named(forget, label, {})
    np.testing.assert_array_equal(named_under(found, bodies[:1], forget, label), plain)
