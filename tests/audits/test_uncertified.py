"""Fits of probes without a certificate reach the notes of what is made of them."""

import numpy as np
import pytest
import torch

from audits.axes.decodability.axis import score_probes
from audits.axes.decodability.site_probes import fit_site_probes
from audits.axes.decodability.tasks import PARTS
from audits.axes.decodability.text_probes import (
    ProbingData,
    TaskStates,
    choose_penalty,
    fit_shuffled_probes,
)
from audits.core.config import make_config
from audits.core.roles import Role
from evidence.progress import SILENT
from evidence.seeds import torch_rng
from experiments.pga.published_protocol import adversarial_probes, published_scores
from experiments.pga.readouts import logistic_readouts
from probes.solvers.newton.newton_cg import ACCEPTED_TOL
from probes.solvers.uncertified import UncertifiedWarning
from probes.sweeps.membership_test import membership
from tests.audits.axes.decodability.test_label_permutation import one_task


@pytest.fixture
def strict(monkeypatch):
    """A tolerance that no fit reaches, however good its answer is."""
    for kind in (torch.float64, torch.float32):
        monkeypatch.setitem(ACCEPTED_TOL, kind, 0.0)


def random_states(*shape):
    return torch.randn(shape, generator=torch_rng(0, "uncertified")).double()


def probing_of(task, left_out=()):
    rng = np.random.default_rng(0)
    parts = {(0, part): rng.normal(size=(2, len(task.parts[part]), 12)) for part in PARTS}
    roles = (Role.ORIGINAL, Role.CANDIDATE)
    states = {role: TaskStates(dict(parts)) for role in roles}
    return ProbingData([task], ("embed", "resid.0"), states, left_out)


def test_readers_keep_what_is_found_and_name_it(strict, monkeypatch):
    x = random_states(2, 40, 8).numpy()
    labels = [np.arange(40) % 2, np.arange(40) // 20]
    found = fit_site_probes(x, labels, 0.3, SILENT)
    for reader in found:
        assert [fit.site for fit in reader.uncertified] == ["site 0", "site 1"]
    monkeypatch.undo()
    for ours, plain in zip(found, fit_site_probes(x, labels, 0.3, SILENT), strict=True):
        assert plain.uncertified == ()
        np.testing.assert_allclose(ours.weights, plain.weights, atol=1e-7)


def test_probes_that_were_not_chosen_and_shuffles_count_too(strict):
    probing = probing_of(one_task(answers=["Lima", "Rome", "Oslo"]))
    assert probing.notes == ()
    choose_penalty(probing, SILENT)
    first = len(probing.states[Role.ORIGINAL].uncertified)
    assert first == 3 * 2  # penalties, sites
    rngs = [np.random.default_rng(seed) for seed in range(2)]
    fit_shuffled_probes(probing, Role.ORIGINAL, 0.3, rngs, SILENT)
    names = [str(fit) for fit in probing.states[Role.ORIGINAL].uncertified[first:]]
    assert names[0] == "site 0, original, capital, C = 0.3, shuffle 0"
    assert len(names) == 2 * 2
    (note,) = probing.notes
    assert note.startswith("Of the probes, 10 fits are not certified to be at the opt")


def test_the_axis_says_so(strict):
    probing = probing_of(one_task(answers=["Lima", "Rome", "Oslo"]), ("one more",))
    found = score_probes(probing, make_config({"profile": "quick"}), SILENT)
    uncertified, left_out = found.notes
    assert "not certified to be at the optimum" in uncertified
    assert left_out == "one more"


def test_membership_counts_the_fits_of_its_null(strict, monkeypatch):
    x, labels = random_states(2, 24, 10), np.repeat([1, 0], 12)
    options = {"families": ["logistic"], "n_permutations": 4, "n_folds": 3}
    found = membership({"last": x}, labels, **options)
    assert len(found.uncertified) == 2 * 5 * 3
    assert {fit.site for fit in found.uncertified} == {"last, 0", "last, 1"}
    monkeypatch.undo()
    plain = membership({"last": x}, labels, **options)
    assert plain.uncertified == ()
    np.testing.assert_allclose(found.auc, plain.auc, atol=0.01)


def test_the_published_protocol_counts_its(strict):
    memorised, clean = random_states(2, 4, 3, 6), random_states(2, 4, 3, 6) + 1
    found = published_scores(memorised, clean, clean + 1, shuffles=1)
    # Depths times keys, for labels and shuffle, and for the second pool.
    assert found.uncertified == 2 * 4 * 2 + 2 * 4
    variants = adversarial_probes(memorised, clean)
    assert [each.uncertified for each in variants.values()] == [8, 8, 8, 8, 0, 0]


def test_a_readout_warns(strict):
    with pytest.warns(UncertifiedWarning):
        found = logistic_readouts()(random_states(1, 20, 5), torch.arange(20) % 2)
    assert float(found.norm()) == pytest.approx(1)
