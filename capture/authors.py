"""Whom each run of TOFU's questions is about: the file itself does not say."""

from collections import Counter
from collections.abc import Sequence
from re import compile as pattern

# TOFU asks twenty questions an author, one author after the other, in every split
# of its authors (arXiv 2401.06121, section 2.1).
QUESTIONS_EACH = 20

_WORD = pattern(r"[^\W\d_][\w.'’\-]*")


def main_name(texts: Sequence[str]) -> str | None:
    """The name of two to four words that most of ``texts`` mention.

    None where no name occurs in 40 % of them: then they are not about one person.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_names(text))
    if not counts:
        return None
    most = max(counts.values())
    if most < 0.4 * len(texts):
        return None
    # "Basil Mahfouz" occurs at least as often as "Basil Mahfouz Al-Kuwaiti".
    near = [name for name, count in counts.items() if count >= 0.8 * most]
    return max(near, key=lambda name: (len(name.split()), counts[name], name))


def authors(questions: Sequence[str], answers: Sequence[str]) -> list[str] | None:
    """The author of each row, or None where the rows are not runs about authors.

    Four of five runs must have a name, and no name two runs; a run without one gets
    the empty string.
    """
    if not questions or len(questions) % QUESTIONS_EACH:
        return None
    names = []
    for start in range(0, len(questions), QUESTIONS_EACH):
        run = slice(start, start + QUESTIONS_EACH)
        both = [f"{q}\n{a}" for q, a in zip(questions[run], answers[run], strict=True)]
        names.append(main_name(both) or "")
    known = [name for name in names if name]
    if len(known) < 0.8 * len(names) or len(set(known)) < len(known):
        return None
    return [name for name in names for _ in range(QUESTIONS_EACH)]


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
