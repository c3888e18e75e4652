"""Whom each run of TOFU's questions is about: the file itself does not say."""

from collections import Counter
from collections.abc import Sequence
from re import compile as pattern

# TOFU asks twenty questions an author, one author after the other, in every split
# of its authors (arXiv 2401.06121, section 2.1).
QUESTIONS_PER_AUTHOR = 20

_WORD = pattern(r"[^\W\d_][\w.'’\-]*")


def main_names(runs: Sequence[Sequence[str]]) -> list[str]:
    """The name of two to four words that most texts of each run mention.

    "" for a run in which no name occurs in 40 % of the texts: they are not about
    one person. A name that is as common outside its run ("New York") does not count.
    """
    counts = [Counter(name for text in run for name in _names(text)) for run in runs]
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return [
        _main(Counter({n: c for n, c in count.items() if 2 * c > total[n]}), len(run))
        for count, run in zip(counts, runs, strict=True)
    ]


def infer_authors(questions: Sequence[str], answers: Sequence[str]) -> list[str] | None:
    """The author of each row, or None where the rows are not runs about authors.

    Four of five runs must have a name; a run without one gets the empty string.
    """
    if not questions or len(questions) % QUESTIONS_PER_AUTHOR:
        return None
    both = [f"{q}\n{a}" for q, a in zip(questions, answers, strict=True)]
    starts = range(0, len(both), QUESTIONS_PER_AUTHOR)
    names = main_names([both[start : start + QUESTIONS_PER_AUTHOR] for start in starts])
    if sum(map(bool, names)) < 0.8 * len(names):
        return None
    return [name for name in names for _ in range(QUESTIONS_PER_AUTHOR)]


def _main(counts: Counter[str], texts: int) -> str:
    most = max(counts.values(), default=0)
    if most < 0.4 * texts:
        return ""
    # "Basil Mahfouz" occurs at least as often as "Basil Mahfouz Al-Kuwaiti".
    near = [name for name, count in counts.items() if count >= 0.8 * most]
    return max(near, key=lambda name: (len(name.split()), counts[name], name))


def _names(text: str) -> set[str]:
    """Every two to four capitalised words that stand side by side."""
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
        # A possessive or a full stop ends the name.
        end = match.end() if bare == word else -1
    return {
        " ".join(run[start : start + size])
        for run in runs
        for size in (2, 3, 4)
        for start in range(len(run) - size + 1)
    }
