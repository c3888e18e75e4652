"""The instrument of the fuzz suite finds what it is for."""

from dataclasses import replace

import pytest

from tests.security.fuzz.inputs.case import Case
from tests.security.fuzz.inputs.catalogue import Kind
from tests.security.fuzz.judge import FAULTS
from tests.security.fuzz.pool import bench

FOUND = {each.replace("-", "_").replace(" ", "_"): each for each in FAULTS}
OTHERS = {"busy": "hang", "canary": "code executed"}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    with bench(tmp_path_factory.mktemp("fuzz"), limit=1.0) as made:
        yield made


def culprit(name: str) -> Kind:
    kind = Kind(name, {}, (), (".",), twin=f"culprits.{name}", imports=())
    if name == "formula_in_a_table":
        return replace(kind, makes=("out/table.csv",))
    if name == "other_result_in_silence":
        return replace(kind, result="document")
    return kind


@pytest.mark.parametrize(("name", "fault"), [*FOUND.items(), *OTHERS.items()])
def test_every_fault_is_found(tried, name, fault):
    outcome = tried.tried(Case(name, ()), culprit(name))
    assert fault in outcome.faults, outcome


def test_nothing_is_found_where_nothing_is_wrong(tried):
    outcome = tried.tried(Case("nothing"), culprit("nothing"))
    assert outcome.accepted and outcome.faults == ()
