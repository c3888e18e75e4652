import copy

import numpy as np
import pytest

from erasure.unlearning.training.loop import finetune_
from tests.helpers.tiny_erasure import FORGET, RETAIN, tiny_llama


@pytest.fixture(scope="session")
def taught():
    """A tiny Llama that knows FORGET and RETAIN by heart."""
    model = tiny_llama()
    finetune_(model, FORGET + RETAIN, lr=1e-2, steps=60, seed=0)
    return model


@pytest.fixture
def knows(taught):
    return copy.deepcopy(taught)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
