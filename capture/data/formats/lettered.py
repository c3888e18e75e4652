"""Multiple choice with its options in the text of the question, in lines or in one line."""

import re
from collections.abc import Sequence
from dataclasses import replace

from capture.data.facts.fact import Fact, as_prompt
from capture.data.facts.prompts import LETTERS
from capture.data.files.rows import Row
from capture.data.formats.chat import plain_prompt
from capture.data.formats.choices import is_letter, resolve
from evidence.errors import InputError

_LINE = re.compile(r"^[ \t]*\(?([A-H])[.):][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)
_MARK = re.compile(r"(?:(?<=\s)|^)\(?([A-H])[.):][ \t]+(?=\S)")
_MIN_IN_ONE_LINE = 3
_ANSWER_CUE = re.compile(r"(?:the\s+)?(?:correct\s+)?answer(?:\s+is)?\s*:?\s*", re.IGNORECASE)
_HEADING = re.compile(r"\n[ \t]*(?:options|choices)[ \t]*:[ \t]*\Z", re.IGNORECASE)


def options_in_text(text: str) -> tuple[str, tuple[str, ...]] | None:
    """Question and options of a text that ends in "A. ...", "B. ..."; None for other texts."""
    lines = list(_LINE.finditer(text))
    if len(lines) >= 2 and [line[1] for line in lines] == list(LETTERS[: len(lines)]):
        question = text[: lines[0].start()]
        tail = text[lines[-1].end() :].strip()
        options = [line[2] for line in lines]
    else:
        marks = list(_MARK.finditer(text))
        letters = [mark[1] for mark in marks]
        if len(marks) < _MIN_IN_ONE_LINE or letters != list(LETTERS[: len(marks)]):
            return None
        question, ends = text[: marks[0].start()], [*(m.start() for m in marks[1:]), len(text)]
        parts = [text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)]
        last, _, tail = parts[-1].partition("\n")
        options, tail = [*parts[:-1], last], tail.strip()
    question = _HEADING.sub("", question.rstrip()).strip()
    if not question or not all(options) or (tail and not _ANSWER_CUE.fullmatch(tail)):
        return None
    return question, tuple(option.strip() for option in options)


def is_lettered(rows: Sequence[Row], field: str, answer: str) -> bool:
    """Whether all texts end in options and all answers are letters."""
    for row in rows:
        text, said = row.fields.get(field), row.fields.get(answer)
        if not isinstance(text, str) or not isinstance(said, str) or not is_letter(said):
            return False
        if options_in_text(text) is None:
            return False
    return True


def with_options(facts: Sequence[Fact]) -> list[Fact]:
    """Take the options out of the questions of a file, where all have them.

    Raises:
        InputError: the answers are letters, and the options are nowhere.
    """
    if not facts or not all(fact.question and not fact.choices for fact in facts):
        return list(facts)
    letters = all(is_letter(fact.answer) for fact in facts)
    parted = [part for fact in facts if (part := options_in_text(fact.question))]
    if len(parted) == len(facts):
        rows = [Row(fact.location, {"answer": fact.answer}) for fact in facts]
        options = [(tuple(LETTERS[: len(texts)]), texts) for _, texts in parted]
        try:
            right = resolve(rows, options, "answer")
        except InputError:
            if letters:
                raise
            return list(facts)
        return [_chosen(*each) for each in zip(facts, parted, right, strict=True)]
    if letters and len(facts) > 1 and {f.answer.strip("(). ") for f in facts} <= set("ABCDE"):
        bad = next(fact for fact in facts if options_in_text(fact.question) is None)
        raise InputError(
            f"{bad.location}: the answer is a letter, and its options were not found",
            expected="options in a list, in columns, or as lines 'A. ...' of the question",
            got=f"the answer {bad.answer!r}",
            fix="Name the column of the options: --columns question=...,choices=...,answer=...",
        )
    return list(facts)


def _chosen(fact: Fact, parted: tuple[str, tuple[str, ...]], right: int) -> Fact:
    question, options = parted
    messages = fact.messages
    if messages:
        messages = (*messages[:-1], ("user", question))
    return replace(
        fact,
        prompt=plain_prompt(messages) if messages else as_prompt(question),
        question=question,
        answer=options[right],
        alternatives=tuple(text for at, text in enumerate(options) if at != right),
        aliases=(),
        choices=options,
        messages=messages,
    )
