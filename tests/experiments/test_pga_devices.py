"""The probe-geometry experiment on CUDA as on the CPU.

Where there is no CUDA device, the pretended one refuses what a real one would.
"""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from evidence.errors import InputError
from evidence.progress import SILENT
from experiments.pga.config import make_config, resolved
from experiments.pga.erasers import ERASERS, erase
from experiments.pga.run import Experiment, measure_published
from testbeds.memorized_codes.config import SIZES
from testbeds.memorized_codes.world import build_codes, perplexity, recall
from tests.helpers.fake_cuda import PretendCuda, mark, marked, there_and_pretended
from tests.helpers.tiny_worlds import TINY


@contextmanager
def pretended():
    """The pretended device, where copies of parameters stay where these are."""
    real = torch.nn.Parameter.__deepcopy__
    with pytest.MonkeyPatch.context() as patch, PretendCuda():
        patch.setattr(
            torch.nn.Parameter,
            "__deepcopy__",
            lambda self, memo: mark(real(self, memo), marked(self)),
        )
        patch.setattr(torch.cuda, "is_available", lambda: True)
        yield


@pytest.fixture(params=there_and_pretended(pretended))
def there(request):
    return request.param


@pytest.mark.parametrize("name", ERASERS)
def test_every_eraser_does_the_same_there(name, tiny_codes, there):
    world, rows = tiny_codes, tiny_codes.memorized_rows()
    here = erase(name, world.load(), world, np.arange(4), epochs=3)
    with here.running():
        want = recall(here.model, rows).mean, perplexity(here.model, rows)
    with there():
        moved = erase(name, world.load(device="cuda"), world, np.arange(4), epochs=3)
        assert next(moved.model.parameters()).device.type == "cuda"
        with moved.running():
            found = recall(moved.model, rows).mean, perplexity(moved.model, rows)
    assert found == pytest.approx(want, rel=1e-2)


def test_a_world_is_made_and_erased_there(tmp_path, there, monkeypatch):
    monkeypatch.setitem(SIZES, "small", replace(TINY, others=0))
    config = make_config({"device": "cuda"})
    with there():
        found = measure_published(config, tmp_path, "md-pga")
    here = measure_published(make_config({"device": "cpu"}), tmp_path, "md-pga")
    np.testing.assert_allclose(found["true"], here["true"], atol=0.13)
    assert found["recall"]["mean"] == pytest.approx(here["recall"]["mean"], rel=1e-2)
    card = build_codes(SIZES["small"], 0, tmp_path).card()
    assert card["device"] == "cuda"
    assert isinstance(card["measured"], dict)
    memorized = card["measured"]["memorised"]
    assert isinstance(memorized, dict) and memorized["greedy"] == 1.0


def test_the_sound_protocol_does_the_same_there(tiny_codes, there):
    settings = {"permutations": 19, "epochs": 2}
    here = Experiment(make_config(settings), tiny_codes, SILENT)
    with there():
        config = make_config(settings | {"device": "cuda"})
        moved = Experiment(config, tiny_codes, SILENT)
        twin = moved.unmodified("twin")["sound"]["auc"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
        found = moved.sound("isotropic")["sound"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    np.testing.assert_allclose(twin, here.unmodified("twin")["sound"]["auc"], atol=0.13)  # pyright: ignore[reportTypedDictNotRequiredAccess]
    want = here.sound("isotropic")["sound"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    np.testing.assert_allclose(found["auc"], want["auc"], atol=0.13)
    for name in ("recall", "recall_test"):
        measured, expected = dict(found)[name], dict(want)[name]
        assert measured["mean"] == pytest.approx(expected["mean"], rel=1e-2)  # pyright: ignore[reportIndexIssue]


def test_a_device_that_is_not_here_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device in ("cuda", "mps"):
        with pytest.raises(InputError, match=f"there is no {device} device here"):
            resolved(make_config({"device": device}))
    assert resolved(make_config({"device": "auto"})).device == "cpu"
    with pytest.raises(InputError, match=r"device of .* cannot be used"):
        make_config({"device": "abacus"})
