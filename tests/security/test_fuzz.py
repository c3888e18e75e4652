"""The quick part of the fuzz suite: a hundred bad inputs, the same every time.

An input that is not read must be refused: exit code 2, one clear line, no code run, no
process, no network, nothing written but what was asked for.
``python -m benchmarks bad-inputs`` tries thousands.
"""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.security.fuzz.generate import drawn, sample
from tests.security.fuzz.inputs.case import Case
from tests.security.fuzz.inputs.catalogue_more import ALL
from tests.security.fuzz.pool import bench
from tests.security.fuzz.shrink import smallest

# What takes seconds to import, or another kind stands for, is left to the long part.
LONG = ("autoencoder", "audit.json of images", "classifier", "images npz")
LONG += ("images folder", "adapter audited", "IA3 adapter", "model planned")
QUICK = [name for name in ALL if name not in LONG]
LISTED, DRAWN = 90, 16
MOST = 3
"""Of one kind's weight: a whole audit takes a second."""


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A server that everything here is tried in."""
    with bench(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


def check(tried, case: Case) -> bool:
    """Whether the input was accepted; it must have no fault either way."""
    outcome = tried.tried(case)
    if outcome.faults:
        case, outcome = smallest(case, outcome, tried.tried)
        pytest.fail(
            f"{', '.join(outcome.faults)}: {outcome.details}\n{outcome.frame}\n"
            f"python -m benchmarks bad-inputs --case '{case.text()}'",
            pytrace=False,
        )
    return outcome.accepted


@pytest.mark.parametrize("name", QUICK)
def test_valid_examples_are_accepted(tried, name):
    assert check(tried, Case(name)) == ALL[name].reads


@pytest.mark.parametrize("name", QUICK)
def test_altered_inputs_do_no_harm(tried, name):
    kind = ALL[name]
    weights = {each: min(MOST, ALL[each].weight) for each in QUICK}
    count = round(LISTED * weights[name] / sum(weights.values()))
    for case in sample(kind, tried.prepare(kind), count, seed=1):
        check(tried, case)


def test_mixtures_do_no_harm(tried):
    @settings(
        max_examples=DRAWN,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[c for c in HealthCheck if isinstance(c, HealthCheck)],
    )
    @given(st.one_of([drawn(ALL[name], tried.prepare(ALL[name])) for name in QUICK]))
    def no_harm(case: Case) -> None:
        check(tried, case)

    no_harm()
