"""Plain-text forms of questions, and the way back to the bare question.

Base models continue text, so a question becomes ``Question: ...`` and ``Answer:`` on two lines.
A chat model is asked the bare question.
"""

import re
from collections.abc import Sequence

_QUESTION = re.compile(r"Question:\s*(?P<question>.+?)\s*\nAnswer:", re.DOTALL)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def question_prompt(question: str) -> str:
    """The prompt of a question, for a model that continues text."""
    return f"Question: {question.strip()}\nAnswer:"


def question_of(prompt: str) -> str | None:
    """The bare question of such a prompt; None where the prompt is no question."""
    found = _QUESTION.fullmatch(prompt.strip())
    return found["question"] if found else None


def choice_question(question: str, choices: Sequence[str]) -> str:
    """A question with its lettered choices, one a line."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False)]
    return "\n".join([question.strip(), *lines])


def choice_prompt(question: str) -> str:
    """The prompt of a question that shows its choices, as evaluation harnesses write it."""
    return f"{question.strip()}\nAnswer:"
