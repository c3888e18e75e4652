"""Axes that run when they are named: what they find is reported and counts."""

import pytest

from audits.core.registry import AXES, axes_of_profile
from audits.run.api import audit

NAMED = ("concept", "restoration", "circuit")


def run(world, model, out, axes):
    return audit(
        world.original,
        model,
        world.forget,
        world.retain,
        out,
        axes=("behaviour", *axes),
        never_taught=world.never_taught,
    )


def test_no_profile_runs_them_unasked():
    assert set(NAMED) < set(AXES)
    for profile in ("quick", "standard", "full"):
        assert not set(NAMED) & set(axes_of_profile(profile))


def test_a_named_axis_is_run_kept_and_reported(world, planted, tmp_path):
    done = run(world, planted("last_block_relabel"), tmp_path / "out", ["concept"])
    assert set(done.axes) == {"behaviour", "concept"}
    assert done.axes["concept"].status == "retained"
    # Clean on tuning models, it counts as the other inner axes do.
    assert done.verdict == "suppressed"
    assert "concept vectors" in " ".join(done.reasons)
    assert "concept" in done.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_all_of_them_see_a_last_block_edit_and_not_a_twin(world, planted, tmp_path):
    hidden = run(world, planted("last_block_relabel"), tmp_path / "hidden", NAMED)
    never = run(world, world.twin, tmp_path / "never", NAMED)
    for name in NAMED:
        assert never.axes[name].status != "retained", name
    assert [hidden.axes[name].status for name in ("concept", "restoration")] == [
        "retained",
        "retained",
    ]
