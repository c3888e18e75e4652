"""Plain text files: one text, one text a line, or questions and answers."""

import re
from collections.abc import Iterator
from pathlib import Path

from capture.data.files.rows import Row

_MIN_PAIRS = 2
_MIN_LINES, _WHOLE = 8, 0.9
_SENTENCE_END = (".", "?", "!", "\u3002", "\uff1f", "\uff01", '"', "\u201d", ")")
_QUESTION = re.compile(r"(?:Question|Q)\s*\d*\s*[:.]\s*(\S.*)", re.IGNORECASE)
_ANSWER = re.compile(r"(?:Answer|A)\s*\d*\s*[:.]\s*(\S.*)", re.IGNORECASE)


def text_rows(path: Path, text: str) -> Iterator[Row]:
    """Yield the records of a plain text.

    Lines with one tab each are a question and its answer, and so are lines "Q: ..." and "A: ...".
    Eight or more lines without a blank line between them, nine in ten of which end a sentence,
    are texts of their own. Everything else is one text.
    """
    every = text.splitlines()
    lines = [(n, line.strip()) for n, line in enumerate(every, 1) if line.strip()]
    cells = [(n, every[n - 1].strip("\r\n").split("\t")) for n, _ in lines]
    if len(cells) >= _MIN_PAIRS and all(len(c) == 2 and all(map(str.strip, c)) for _, c in cells):
        asked = sum(cell[0].rstrip().endswith(("?", "\uff1f")) for _, cell in cells)
        first = "question" if 2 * asked >= len(cells) else "prompt"
        for number, cell in cells:
            fields: dict[str, object] = {first: cell[0].strip(), "answer": cell[1].strip()}
            yield Row(f"{path.name}, line {number}", fields)
    elif pairs := _asked(lines):
        for number, question, answer in pairs:
            yield Row(f"{path.name}, line {number}", {"question": question, "answer": answer})
    elif len(lines) >= _MIN_LINES and lines[-1][0] - lines[0][0] == len(lines) - 1:
        ended = sum(line.endswith(_SENTENCE_END) for _, line in lines)
        if ended >= _WHOLE * len(lines):
            for number, line in lines:
                yield Row(f"{path.name}, line {number}", {"text": line})
        else:
            yield Row(path.name, {"text": text.strip()})
    elif lines:
        yield Row(path.name, {"text": text.strip()})


def _asked(lines: list[tuple[int, str]]) -> list[tuple[int, str, str]]:
    """Line, question and answer of a text of nothing else; [] for other texts."""
    if len(lines) < 2 * _MIN_PAIRS or len(lines) % 2:
        return []
    pairs = []
    for (number, asked), (_, told) in zip(lines[::2], lines[1::2], strict=True):
        question, answer = _QUESTION.fullmatch(asked), _ANSWER.fullmatch(told)
        if not question or not answer:
            return []
        pairs.append((number, question[1], answer[1]))
    return pairs
