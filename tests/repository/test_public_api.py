"""What could be imported yesterday can be today, and is called the same way."""

import importlib

import pytest

from tests.repository import public_api

# Of the libraries under sae-lens.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
NEW = "run `python -m tests.repository.public_api` where this is meant"


def test_every_name_is_where_it_was_and_has_its_signature():
    found = public_api.changes(public_api.kept())
    lines = [f"{name} {how}" for name, how in found.items()]
    assert not lines, "\n".join([*lines, NEW])


def test_the_public_names_are_those_of_the_snapshot():
    facade = importlib.import_module("exhume")
    assert sorted(facade.__all__) == sorted(public_api.kept()["exhume"]), NEW


def test_what_moved_is_the_same_thing_at_its_old_path():
    """A copy would be patched, or counted, beside the one that is used."""
    wrong = []
    kept = public_api.kept()
    for old, places in public_api.moved().items():
        new = [importlib.import_module(place) for place in places]
        for name in kept.get(old, {}):
            here = public_api.imported(old, name)
            there = [vars(module)[name] for module in new if name in vars(module)]
            if not any(each is here for each in there):
                wrong.append(f"{old}:{name} is not that of {', '.join(places)}")
    assert not wrong, "\n".join(wrong)


def test_a_name_that_is_gone_and_one_that_is_called_otherwise_are_told():
    names = {
        "evidence.seeds": {"no_such_name": "()", "numpy_rng": "(seed: int)"},
        "evidence.no_such_module": {"f": "()"},
    }
    found = public_api.changes(names)
    assert "has no no_such_name" in found["evidence.seeds:no_such_name"]
    assert found["evidence.seeds:numpy_rng"].startswith("was (seed: int)\n  is (seed")
    assert "there is no evidence.no_such_module" in found["evidence.no_such_module:f"]


def test_signatures_do_not_say_where_a_type_lives():
    from capture.data.items import read_items

    shown = public_api.described(read_items)
    assert shown.endswith("-> ItemSet")
    assert "Path" in shown and "pathlib" not in shown


def test_the_order_of_a_set_in_a_default_does_not_count():
    """Strings are hashed with another seed in every process."""

    def one(kind=frozenset({"b", "a", "c"})):
        return kind

    assert "{'a', 'b', 'c'}" in public_api.described(one)
