"""Small systems on one thread, and then as many as before."""

import pytest
import torch

from probes.estimators.logistic import LogisticProbe
from probes.solvers.crossfit import SINGLE_THREAD_SIZE, few_threads
from probes.sweeps.sweep import sweep


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("size", "inside"), [(SINGLE_THREAD_SIZE, 1), (SINGLE_THREAD_SIZE + 1, 2)])
def test_only_small_systems_get_one_thread(two_threads, size, inside):
    with few_threads(size):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 2


def test_a_failure_gives_the_threads_back(two_threads):
    with pytest.raises(RuntimeError), few_threads(2):
        raise RuntimeError
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one(two_threads):
    torch.set_num_threads(1)
    with few_threads(SINGLE_THREAD_SIZE):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_a_sweep_solves_its_small_folds_on_one_thread(two_threads, monkeypatch):
    seen = []
    from probes.solvers import problem

    solve = problem.minimize

    def noting(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return solve(*args, **kwargs)

    monkeypatch.setattr(problem, "minimize", noting)
    x = torch.randn(2, 40, 30, generator=torch.Generator().manual_seed(0))
    sweep(x, [0, 1] * 20, probe=LogisticProbe(), draws=20)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
