"""Which inputs are tried: every field with every value in turn, and drawn mixtures."""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from tests.security.fuzz.inputs.case import Case, Edit
from tests.security.fuzz.inputs.catalogue import Kind, Target
from tests.security.fuzz.inputs.edits import PLACES
from tests.security.fuzz.inputs.trees import FORMATS, paths
from tests.security.fuzz.inputs.values import FIELDS, PAYLOADS

NUMBERS = {"NaN": "0000c07f", "infinity": "0000807f", "largest": "ffff7f7f", "smallest": "01000000"}
"""float32 values, as they lie in a file of weights."""
_KEY_VALUES = ("2**64", "escapes", "empty", "long name", "null", "number in words")
_TWICE = ("null", "minus one", "word", "object")
_BESIDE = (
    ("adapter_model.bin", "torch archive"),
    ("pytorch_model.bin", "torch archive"),
    ("model.safetensors.index.json", "an object"),
    ("adapter_config.json", "a list"),
    ("modeling_evil.py", "program"),
    ("added_tokens.json", "deep objects"),
    ("tokenizer.model", "pickle"),
    ("chat_template.json", "deep objects"),
    ("processor_config.json", "a list"),
)


def grid(kind: Kind, root: Path) -> dict[tuple[str, str], list[Edit]]:
    """Every single edit of a kind, by file and way of changing it.

    Args:
        kind: What is changed.
        root: A folder in which the valid example lies.
    """
    groups: dict[tuple[str, str], list[Edit]] = defaultdict(list)
    for target in kind.targets:
        edits = _of_target(target, root) if target.file else _of_arguments(kind.arguments)
        for edit in edits:
            groups[target.file, edit.how].append(edit)
    return groups


def fields_of(target: Target, root: Path) -> list[tuple]:
    """Ways to the fields of a file; none where it has no format or does not exist."""
    from tests.security.fuzz.inputs.edits import found

    path = found(root, target.file)
    if not target.format or not path.is_file():
        return []
    return paths(FORMATS[target.format].read(path.read_bytes()).fields)


def _of_target(target: Target, root: Path) -> Iterator[Edit]:
    from tests.security.fuzz.inputs.edits import found

    file, path = target.file, found(root, target.file)
    for name in PLACES:
        yield Edit(file, "place", (), name)
    if path.is_dir():
        return
    for name, payload in _BESIDE:
        if "model" in file or "adapter" in file:
            yield Edit(file, "beside", (), (name, payload))
    for name in PAYLOADS:
        yield Edit(file, "payload", (), name)
    if file.endswith(".png"):
        for name in ("escapes", "bidi", "long name", "markup", "formula", "dtype"):
            yield Edit(file, "name", (), name)
    size = path.stat().st_size if path.is_file() else 1
    for part in range(12):
        at = size * part // 12 + part
        yield Edit(file, "cut", (at,))
        yield Edit(file, "flip", (at, part))
        yield Edit(file, "lose", (at, 1 + part * part))
        yield Edit(file, "over", (at,), ("ff" * (1 + part),))
        yield Edit(file, "insert", (at,), (("00", "0a", "22", "7d", "e28080")[part % 5],))
    if target.tail:
        for value in NUMBERS.values():
            for back in (3, 403, 20_003):
                yield Edit(file, "tail", (back,), (value,))
    inside = fields_of(target, root)
    if not inside and not target.format:
        return
    for value in FIELDS:
        yield Edit(file, "set", (), value)
    for way in inside:
        yield Edit(file, "drop", way)
        for value in FIELDS:
            yield Edit(file, "set", way, value)
        if isinstance(way[-1], int):
            continue
        for value in _TWICE:
            yield Edit(file, "twice", way, value)
        for value in _KEY_VALUES:
            yield Edit(file, "key", way, value)
    for key in target.keys:
        for value in FIELDS:
            yield Edit(file, "add", ("",), (key, value))


def _of_arguments(arguments: tuple[str, ...]) -> Iterator[Edit]:
    for place, text in enumerate(arguments):
        if place == 0 or text.startswith("--"):
            continue
        yield Edit("", "drop", (place,))
        for value in FIELDS:
            yield Edit("", "set", (place,), value)


def sample(kind: Kind, root: Path, count: int, seed: int) -> list[Case]:
    """Single edits, so that every file and every way of changing it has its turn."""
    chance = random.Random(f"{seed}/{kind.name}")
    groups = [list(edits) for edits in grid(kind, root).values()]
    for group in groups:
        chance.shuffle(group)
    # Fields have many more values than there are places and payloads.
    turns = [group for group in groups for _ in range(1 + (len(group) > 100) * 3)]
    chance.shuffle(turns)
    found: list[Case] = []
    while len(found) < count and any(turns):
        for group in turns:
            if group and len(found) < count:
                found.append(Case(kind.name, (group.pop(),)))
    return found


def drawn(kind: Kind, root: Path) -> st.SearchStrategy[Case]:
    """One to four edits of a kind, with values that nobody listed."""
    choices = [
        strategy
        for target in kind.targets
        for strategy in (
            _drawn_target(target, root) if target.file else [_drawn_argument(kind.arguments)]
        )
    ]
    edits = st.lists(st.one_of(choices), min_size=1, max_size=4, unique=True)
    return edits.map(lambda found: Case(kind.name, tuple(found)))


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["NaN", "1e999", "org/model", "../x", "/dev/zero", "(a+)+$"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def _drawn_target(target: Target, root: Path) -> list[st.SearchStrategy[Edit]]:
    import json

    file, inside = target.file, fields_of(target, root)
    place = st.integers(0, 1 << 20)
    some = st.binary(min_size=1, max_size=8).map(lambda data: (data.hex(),))
    if not target.format and not target.tail and "." not in file.rsplit("/", 1)[-1]:
        return [st.sampled_from(list(PLACES)).map(lambda n: Edit(file, "place", (), n))]
    found = [
        st.builds(lambda at: Edit(file, "cut", (at,)), place),
        st.builds(lambda at, b: Edit(file, "flip", (at, b)), place, st.integers(0, 7)),
        st.builds(lambda at, b: Edit(file, "insert", (at,), b), place, some),
        st.builds(lambda at, b: Edit(file, "over", (at,), b), place, some),
        st.builds(
            lambda at, n, to: Edit(file, "copy", (at, n, to)), place, st.integers(1, 5000), place
        ),
        st.builds(lambda at, n: Edit(file, "lose", (at, n)), place, st.integers(1, 5000)),
    ]
    if inside:
        ways = st.sampled_from(inside)
        texts = _JSON.map(json.dumps)
        values = st.sampled_from(list(FIELDS))
        found += 3 * [
            st.builds(lambda way, text: Edit(file, "text", way, text), ways, texts),
            st.builds(lambda way, name: Edit(file, "set", way, name), ways, values),
        ]
        found.append(st.builds(lambda way: Edit(file, "drop", way), ways))
    if target.keys:
        keys = st.sampled_from(target.keys)
        values = st.sampled_from(list(FIELDS))
        found.append(st.builds(lambda k, v: Edit(file, "add", ("",), (k, v)), keys, values))
    return found


def _drawn_argument(arguments: tuple[str, ...]) -> st.SearchStrategy[Edit]:
    places = [place for place, text in enumerate(arguments) if place and not text.startswith("--")]
    return st.builds(
        lambda place, value: Edit("", "set", (place,), value),
        st.sampled_from(places),
        st.sampled_from(list(FIELDS)),
    )


def draw(kind: Kind, root: Path, count: int, seed: int) -> list[Case]:
    """Cases that hypothesis draws, the same ones for the same seed."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    found: dict[str, Case] = {}

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[c for c in HealthCheck if isinstance(c, HealthCheck)],
    )
    @given(drawn(kind, root))
    def collect(case: Case) -> None:
        found.setdefault(case.key, case)

    collect()
    return list(found.values())[:count]
