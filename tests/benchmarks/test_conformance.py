"""Each public function on each kind of live model: right, or refused in one sentence.

The benchmark tries every combination; here each function meets each kind once, and families,
paddings and precisions take turns.
"""

import inspect
from itertools import product

import pytest
from torch import nn

import exhume
from benchmarks.suites.conformance.calls import BY_ROWS, IN_CONTEXT
from benchmarks.suites.conformance.models import FAMILIES, KINDS
from benchmarks.suites.conformance.suite import DTYPES, PADDINGS, REFUSED, RIGHT, cell

FUNCTIONS = [*BY_ROWS, *IN_CONTEXT]
SETTINGS = list(product(FAMILIES, PADDINGS, DTYPES))
# Public functions of models that the table leaves out, and where they are tested.
ELSEWHERE = {
    "capture_images": "image models: tests/capture/network/test_image_sites.py",
    "unlearn_images_": "image models: tests/erasure/unlearning",
    "confirm_traces": "follows find_value_vectors: tests/attribution/test_value_vectors.py",
    "trace_survival": "follows find_value_vectors: tests/attribution/test_value_vectors.py",
    "random_traces": "follows find_value_vectors: tests/attribution/test_value_vectors.py",
    "select_circuit": "follows score_edges: tests/attribution/circuits",
    "fold_": "changes weights as quantize_ does: tests/erasure/weights",
    "hook_names": "names alone: tests/capture/network",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_function_is_right_or_refuses(kind):
    for number, function in enumerate(FUNCTIONS):
        family, padding, dtype = SETTINGS[(number + len(kind)) % len(SETTINGS)]
        family = "gpt2" if kind == "HookedTransformer" else family
        found = cell(function, kind, family, padding, dtype)
        assert found is not None
        assert found.outcome in (RIGHT, REFUSED), found
        if kind in ("Hugging Face", "DataParallel", "nnsight", "compiled", "training mode"):
            assert found.outcome == RIGHT, found


def test_every_public_function_of_a_model_is_in_the_table():
    named = {word.strip(",") for function in FUNCTIONS for word in function.split()}
    for name in dir(exhume):
        thing = getattr(exhume, name)
        if inspect.isclass(thing) or not callable(thing) or name in ELSEWHERE:
            continue
        kinds = [each.annotation for each in inspect.signature(thing).parameters.values()]
        assert nn.Module not in kinds or name in named, name
