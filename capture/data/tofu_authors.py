"""Inference of the author of each block of TOFU questions."""

from collections import Counter
from collections.abc import Sequence
from re import compile as pattern

# TOFU has twenty consecutive questions per author in every split (arXiv 2401.06121,
# section 2.1).
QUESTIONS_PER_AUTHOR = 20

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
