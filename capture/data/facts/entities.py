"""Inference of the entity of questions from the names in them, as TOFU needs."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from re import compile as pattern

# TOFU has twenty consecutive questions per author in every split (arXiv 2401.06121,
# section 2.1).
QUESTIONS_PER_AUTHOR = 20

MIN_ROWS = 2
"""Questions that must share a name before it is taken for their entity."""
MIN_NAMED = 0.7
"""Share of the questions whose entity must be found, or none is."""
_SHORTER = 0.8  # a part of a name must be this much commoner than the name to be one of its own
_MIN_INNER, _ALL = 3, 0.9
_MIN_NEW = 0.6  # share of a name's rows that no commoner name explains
# Words that begin a question and are no part of a name.
STARTS = frozenset(
    "a an and are at by can could describe did do does explain for from give had has have how in"
    " is list name no of on please tell the to was were what when where which who whom whose why"
    " with would yes".split()
)
_WORD = pattern(r"[^\W\d_][\w.'’\-]*")


def main_names(runs: Sequence[Sequence[str]]) -> list[str]:
    """The most common name, of two to four words, in each run of texts.

    "" for a run in which no name occurs in 40 % of the texts. Names that are as common outside
    the run ("New York") are ignored.
    """
    counts = [Counter(name for text in run for name in _capitalized_names(text)) for run in runs]
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return [
        _most_common_name(Counter({n: c for n, c in count.items() if 2 * c > total[n]}), len(run))
        for count, run in zip(counts, runs, strict=True)
    ]


def infer_authors(questions: Sequence[str], answers: Sequence[str]) -> list[str] | None:
    """The author of each row, or None if the rows are not runs about authors.

    At least 80 % of the runs must have a name; the others get the empty string.
    """
    if not questions or len(questions) % QUESTIONS_PER_AUTHOR:
        return None
    texts = [f"{q}\n{a}" for q, a in zip(questions, answers, strict=True)]
    starts = range(0, len(texts), QUESTIONS_PER_AUTHOR)
    names = main_names([texts[start : start + QUESTIONS_PER_AUTHOR] for start in starts])
    if sum(map(bool, names)) < 0.8 * len(names):
        return None
    return [name for name in names for _ in range(QUESTIONS_PER_AUTHOR)]


def _most_common_name(counts: Counter[str], texts: int) -> str:
    max_count = max(counts.values(), default=0)
    if max_count < 0.4 * texts:
        return ""
    # Prefer longer names: "Basil Mahfouz" is at least as common as "Basil Mahfouz Al-Kuwaiti".
    candidates = [name for name, count in counts.items() if count >= 0.8 * max_count]
    return max(candidates, key=lambda name: (len(name.split()), counts[name], name))


def _capitalized_names(text: str) -> set[str]:
    """All sequences of two to four adjacent capitalized words."""
    runs: list[list[str]] = [[]]
    end = None
    for match in _WORD.finditer(text):
        word = match.group()
        bare = word.removesuffix("'s").removesuffix("’s").rstrip(".'’-")
        if end is not None and text[end : match.start()] != " ":
            runs.append([])
        if bare[:1].isupper():
            runs[-1].append(bare)
        else:
            runs.append([])
        # A possessive or a period ends the name.
        end = match.end() if bare == word else -1
    return {
        " ".join(run[start : start + size])
        for run in runs
        for size in (2, 3, 4)
        for start in range(len(run) - size + 1)
    }


def infer_by_names(questions: Sequence[str], answers: Sequence[str]) -> list[str] | None:
    """The entity of each row by the names that recur in the whole file, in any order of rows.

    A name of two to four words in 2 to 20 rows, and in the question of half of them, is an entity
    unless a commoner name explains its rows, as an author explains a book. Rows that name no
    entity get it from another name that only its rows mention, or from the rows around them where
    the file keeps each entity together.

    Returns:
        Names, "" where none was found; None if fewer than 70 % of the rows have one.
    """
    asked = [_proper_names(question) for question in questions]
    told = [names | _proper_names(a) for names, a in zip(asked, answers, strict=True)]
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, names in enumerate(told):
        for name in names:
            rows_of[name].append(row)
    rows_of = {n: rows for n, rows in rows_of.items() if len(rows) >= MIN_ROWS}
    entities = [""] * len(told)
    for name in _candidates(rows_of, asked):
        free = [row for row in rows_of[name] if not entities[row]]
        if len(free) >= max(_MIN_NEW * len(rows_of[name]), MIN_ROWS):
            for row in free:
                entities[row] = name
    _by_other_names(entities, told, rows_of)
    _by_position(entities, [names <= rows_of.keys() for names in asked])
    if sum(map(bool, entities)) < MIN_NAMED * len(entities):
        return None
    return entities


def _candidates(rows_of: dict[str, list[int]], asked: Sequence[set[str]]) -> list[str]:
    """Names that may be entities, the commonest first."""
    kept = {
        name
        for name, rows in rows_of.items()
        if len(rows) <= QUESTIONS_PER_AUTHOR
        and 2 * sum(name in asked[row] for row in rows) >= len(rows)
    }
    for name in sorted(kept, key=lambda name: (-len(name.split()), name)):
        for part in _parts(name):
            if part in kept and name in kept:
                # Of a name and a part of it one is meant: the longer if it is nearly as common.
                longer = len(rows_of[name]) >= _SHORTER * len(rows_of[part])
                kept.discard(part if longer else name)
    kept -= _contexts({name: set(rows_of[name]) for name in sorted(kept)})
    return sorted(kept, key=lambda name: (-len(rows_of[name]), -len(name.split()), name))


def _contexts(rows_of: dict[str, set[int]]) -> set[str]:
    """Names whose rows are those of two or more other names: the town in which authors live."""
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, rows in rows_of.items():
        for row in rows:
            names_of[row].append(name)
    shared: Counter[tuple[str, str]] = Counter()
    for names in names_of.values():
        shared.update((one, other) for one in names for other in names if one != other)
    covered: dict[str, list[set[int]]] = defaultdict(list)
    for (one, other), n in shared.items():
        size = len(rows_of[other])
        if size >= _MIN_INNER and 2 * n >= size and n < _ALL * len(rows_of[one]):
            covered[one].append(rows_of[other] & rows_of[one])
    return {
        name
        for name, parts in covered.items()
        if len(parts) >= 2 and len(set().union(*parts)) >= _ALL * len(rows_of[name])
    }


def _parts(name: str) -> Iterable[str]:
    words = name.split()
    for size in range(2, len(words)):
        for start in range(len(words) - size + 1):
            yield " ".join(words[start : start + size])


def _by_other_names(
    entities: list[str], told: Sequence[set[str]], rows_of: dict[str, list[int]]
) -> None:
    """Fill in rows with a name, such as a book's, that only one entity's rows mention."""
    owners = {name: {entities[row] for row in rows} - {""} for name, rows in rows_of.items()}
    for row, names in enumerate(told):
        if not entities[row]:
            owned = [owners[name] for name in names if name in owners]
            found = {next(iter(each)) for each in owned if len(each) == 1}
            if len(found) == 1:
                entities[row] = found.pop()


def _by_position(entities: list[str], open_rows: Sequence[bool]) -> None:
    """Fill in rows between rows of one entity, in a file that keeps each entity together.

    Args:
        open_rows: Whether each question has no name of its own, which could be another entity.
    """
    named = [(row, name) for row, name in enumerate(entities) if name]
    runs = [name for at, (_, name) in enumerate(named) if not at or named[at - 1][1] != name]
    if len(runs) > len(set(runs)):
        return
    for (first, name), (last, other) in pairwise(named):
        for row in range(first + 1, last):
            if name == other and open_rows[row]:
                entities[row] = name


def _proper_names(text: str) -> set[str]:
    """Names in a text, without those that begin with a question word."""
    names = _capitalized_names(text)
    return {name for name in names if name.split()[0].casefold() not in STARTS}
