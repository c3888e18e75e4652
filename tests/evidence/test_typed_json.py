"""Typed values survive their JSON to the last bit, and JSON of another shape is refused."""

import json
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import NamedTuple, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from audits.core.roles import Role
from evidence.errors import InputError
from evidence.typed_json import (
    BoolArray,
    FloatArray,
    Json,
    NotStored,
    from_json,
    to_json,
    to_json_object,
)


class Kind(StrEnum):
    ONE = "one"
    TWO = "two"


class Pair(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Leaf:
    name: str
    share: float
    count: int
    kind: Kind
    pair: Pair
    right: bool
    maybe: float | None
    free: Json = None


@dataclass(frozen=True, eq=False)
class Tree:
    leaves: tuple[Leaf, ...]
    values: FloatArray
    mask: BoolArray
    by_role: dict[Role, dict[Kind, Leaf]] = field(default_factory=dict)


@dataclass(frozen=True)
class Empty:
    why: str


@dataclass(frozen=True)
class Remark:
    said: str
    unsaid: NotStored = ""


# Zeros of both signs, the smallest subnormal and the ends of the range are drawn by name.
EDGES = [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1, 1 / 3]
FLOATS = st.sampled_from(EDGES) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
LEAVES = st.builds(
    Leaf,
    TEXTS,
    FLOATS,
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(Kind),
    st.builds(Pair, FLOATS, FLOATS),
    st.booleans(),
    st.none() | FLOATS,
    JSON,
)
ROLES = st.sampled_from([Role.ORIGINAL, Role.CANDIDATE, Role.reference(1), Role.reference(12)])


def tables(element, dtype):
    """Arrays of one to three dimensions; the later ones are never empty, as lists have none."""
    filled = arrays(dtype, array_shapes(min_dims=1, max_dims=3, max_side=4), elements=element)
    return filled | st.just(np.empty(0, dtype))


TREES = st.builds(
    Tree,
    st.lists(LEAVES, max_size=3).map(tuple),
    tables(FLOATS, np.float64),
    tables(st.booleans(), np.bool_),
    st.dictionaries(ROLES, st.dictionaries(st.sampled_from(Kind), LEAVES, max_size=2), max_size=2),
)


def through_text(value, type_=None):
    return json.loads(json.dumps(to_json(value, type_), allow_nan=False))


def bits(value: float) -> bytes:
    return np.float64(value).tobytes()


@given(TREES)
def test_nested_values_come_back_to_the_last_bit(tree):
    back = from_json(Tree, through_text(tree))
    assert back.leaves == tree.leaves and back.by_role == tree.by_role
    for one, other in zip(tree.leaves, back.leaves, strict=True):
        for number in (one.share, *one.pair, one.maybe):
            assert number is None or isinstance(number, float)
        pairs = [(one.share, other.share), *zip(one.pair, other.pair, strict=True)]
        # Equality does not tell -0.0 from 0.0.
        assert all(bits(a) == bits(b) for a, b in pairs)
        assert type(other.kind) is Kind and type(other.pair) is Pair
    for name in ("values", "mask"):
        one, other = getattr(tree, name), getattr(back, name)
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert all(type(role) is Role for role in back.by_role)
    assert to_json(back) == to_json(tree)


@given(st.lists(FLOATS, max_size=5))
def test_types_without_a_class_are_named(values):
    by_name = {str(number): value for number, value in enumerate(values)}
    back = from_json(dict[str, float], through_text(by_name, dict[str, float]))
    assert [bits(each) for each in back.values()] == [bits(each) for each in values]
    one_of = cast("type[Leaf | Empty]", Leaf | Empty)
    assert from_json(one_of, through_text(Empty("nothing"), one_of)) == Empty("nothing")


def test_what_is_not_stored_comes_back_empty():
    saved = to_json_object(Remark("this", "that"))
    assert saved == {"said": "this"}
    assert from_json(Remark, saved) == Remark("this")


LEAF = Leaf("a", 0.5, 3, Kind.ONE, Pair(0.0, 1.0), True, None)
TREE = to_json_object(Tree((LEAF,), np.zeros((2, 2)), np.ones(2, bool)))
FIELDS = {each.name: to_json_object(LEAF)[each.name] for each in fields(Leaf)}
WRONG = {
    "nothing": None,
    "a list": [],
    "text": "Leaf",
    "a missing field": {key: value for key, value in FIELDS.items() if key != "share"},
    "text for a number": FIELDS | {"share": "much"},
    "a fraction for a count": FIELDS | {"count": 0.5},
    "no such member": FIELDS | {"kind": "three"},
    "three of a pair": FIELDS | {"pair": [0.0, 1.0, 2.0]},
    "an object for a flag": FIELDS | {"right": {}},
}


@pytest.mark.parametrize("what", WRONG)
def test_json_of_another_shape_is_refused(what):
    with pytest.raises(InputError, match=r"stored Leaf cannot be read.*run the audit again"):
        from_json(Leaf, WRONG[what])


@pytest.mark.parametrize(
    "changed",
    [
        {"values": "text"},
        {"values": [[1.0], [1.0, 2.0]]},
        {"values": {"a": 1.0}},
        {"values": None},
        {"values": [[1.0, None]]},
        {"values": ["0.5"]},
        {"mask": [0.5]},
        {"mask": "text"},
        {"mask": None},
        {"leaves": [FIELDS | {"share": None}]},
        {"by_role": []},
        {"by_role": {"original": {"three": FIELDS}}},
    ],
)
def test_a_wrong_place_deep_inside_is_refused_too(changed):
    assert from_json(Tree, TREE).leaves == (LEAF,)
    with pytest.raises(InputError, match="stored Tree cannot be read"):
        from_json(Tree, {**TREE, **changed})


def test_a_role_that_there_is_not_is_named():
    with pytest.raises(InputError, match=r"no role of a model.*'judge'"):
        from_json(Tree, {**TREE, "by_role": {"judge": {}}})


@given(JSON)
def test_whatever_the_json_is_one_error_comes_of_it(saved):
    try:
        assert isinstance(from_json(Tree, saved), Tree)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
