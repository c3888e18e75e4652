"""Edits of what reads an image, and the checks that decide their state."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from evidence.errors import ExhumeError
from testbeds.edits.digits_edits import DigitsWorkbench
from testbeds.edits.early import image_front
from testbeds.edits.early.front_checks import Carried, FrontChecks
from testbeds.edits.early.image_front import (
    EARLY_EDITS,
    image_front_checks,
    image_front_names,
    with_image_front,
)
from testbeds.worlds import digits
from testbeds.worlds.digits import build_digits
from testbeds.zoo.build import _decided, split
from testbeds.zoo.kinds import DIGITS_KINDS
from tests.helpers.tiny_digits import TINY_DIGITS

TINY_VIT = replace(TINY_DIGITS, family="vit", lr=3e-3, steps=150)


@pytest.fixture(scope="module", params=[TINY_DIGITS, TINY_VIT], ids=["cnn", "vit"])
def bench(request, tmp_path_factory):
    """Of worlds of their own: what counts as learned is lowered for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digits, "MIN_ACCURACY", 0.85)  # a few steps are enough here
        world = build_digits(request.param, 0, tmp_path_factory.mktemp("digits"))
    return DigitsWorkbench.from_world(world, request.param, 0, "cpu")


@pytest.mark.parametrize(("edit", "depth"), [each[1:] for each in EARLY_EDITS])
def test_everything_behind_the_front_is_the_originals(bench, edit, depth):
    original, model = bench.load_original(), next(edit(bench))
    before, after = original.state_dict(), model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = set(image_front_names(original, depth))
    assert moved
    assert moved <= inside < set(before)
    assert all((".layers.0." in name) or (".embeddings." in name) for name in inside)
    assert bench.measured(model)["said"] < bench.measured(original)["said"] - 0.5
    back = with_image_front(model, original, depth)
    assert all(torch.equal(before[name], now) for name, now in back.state_dict().items())


def test_a_front_that_names_the_class_is_no_certain_suppression(bench, monkeypatch):
    # Of two blocks and the stem only the classifier is left behind the deepest front.
    monkeypatch.setattr(bench.__class__, "retrained", lambda self, _: self.load_twin())
    image_front._LATEST.clear()
    deep = image_front_checks(2)(bench, bench.load_original())
    able = {each.model: each for each in deep.carried}[
        "twin with the original's row of the classifier"
    ]
    assert able.with_front > able.alone + 0.05
    assert any("the front holds some of them" in each for each in deep.failures)
    shallow = image_front_checks(0)(bench, bench.load_original())
    assert {each.with_front for each in shallow.carried} == {0.0}
    assert not any("holds" in each for each in shallow.failures)
    # A change behind the front is seen.
    late = image_front_checks(0)(bench, bench.load_twin())
    assert late.changed_behind > 0
    assert any("behind its front" in each for each in late.failures)
    image_front._LATEST.clear()


def test_a_model_without_a_stem_is_refused():
    with pytest.raises(ExhumeError, match="no single part named embeddings"):
        image_front_names(torch.nn.Linear(2, 2), 0)


def test_the_checks_decide_the_state():
    kind = DIGITS_KINDS["patch_embedding_relabel"]
    measured = {"said": 0.0, "kept": 0.95}
    for with_front, state in ((0.5, None), (0.0, "suppressed")):
        checks = FrontChecks(0, 10, 0, 0.97, (Carried("twin", 0.0, with_front),))
        checked = replace(kind, check=lambda *_, checks=checks: checks)
        card: Any = _decided(checked, cast("Any", None), cast("Any", None), measured)
        assert card["state"] == state
        assert ("to be graded" in str(card["why"])) is (state is None)
        assert card["front"]["never_knew"]["twin"] == {"alone": 0.0, "with_front": with_front}


def test_a_retrain_that_did_not_learn_is_replaced_by_another(bench, monkeypatch):
    tried = []

    def retrained(self, seed):
        tried.append(seed)
        if len(tried) == 1:
            raise ExhumeError("a retrain names only 96.8% of its test images")
        return self.load_twin()

    monkeypatch.setattr(DigitsWorkbench, "retrained", retrained)
    image_front._retrain(bench)
    assert len(set(tried)) == 2
    assert bench.seed not in tried


def test_the_deeper_front_is_never_tuned_on():
    parts = split("digits")
    assert not set(parts["tuning"]["seeds"]) & set(parts["held_out"]["seeds"])
    assert set(parts["held_out"]["kinds"]) == set(DIGITS_KINDS)
    assert set(DIGITS_KINDS) - set(parts["tuning"]["kinds"]) == {"first_stage_relabel"}
