"""Running text, cut into verbatim items: MUSE, WMDP corpora, RWKU passages, books."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from capture.data.facts.fact import Fact, field_text
from capture.data.facts.subjects import subjects
from capture.data.files.rows import Row
from evidence.errors import InputError

TEXT_FIELDS = ("text", "passage", "content", "intro", "wikipage", "wikipedia_content", "article")
N_PROMPT_WORDS = 64
N_ANSWER_WORDS = 32
CUTS_PER_TEXT = 4
"""Passages of one text that is one entity."""
SECTIONS_PER_TEXT = 64
"""Passages of one long text, each an entity of its own."""
MAX_TEXTS = 500
"""Texts of one file that are cut; of more, those with the smallest SHA-256 are."""
SECTION_WORDS = 128
"""Least distance, in words, between the passages of one long text."""
LONG_WORDS = 1000
FEW_TEXTS = 8
"""In a file of fewer texts, those of 1,000 words or more are divided into sections."""
RELATION = "continuation"
_MIN_WORDS = 4
# Of texts of more characters, slices are cut: the words of a book need a gigabyte at once.
_SLICED_CHARACTERS = 200_000
_SLICE_CHARACTERS = 20_000
_PARAGRAPH = re.compile(r"\n[ \t\r]*\n")
# Scripts that are written without spaces: Thai, Lao, Khmer, kana, ideographs.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


@dataclass(frozen=True)
class Cut:
    """A passage of a text: the place of its first word, its prompt and its continuation."""

    place: int
    prompt: str
    answer: str


def read_texts(rows: Sequence[Row]) -> list[Fact]:
    """Passages of the texts of a file; a text is one entity, its title if it has one."""
    present = {name for row in rows for name in row.fields}
    field = next(f for f in TEXT_FIELDS if f in present)
    texts = [_text(row, field) for row in rows]
    about = subjects(rows, texts, used=(field,), always=True)
    pairs = zip(about.entities, texts, strict=True)
    named = [entity or f"text-{_hash(text)}" for entity, text in pairs]
    return passages(rows, texts, named)


def _text(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if isinstance(value, str) and value.strip():
        return value  # may be longer than any other field
    return field_text(row, field)


def passages(rows: Sequence[Row], texts: Sequence[str], entities: Sequence[str]) -> list[Fact]:
    """Cut texts into facts of the relation "continuation".

    Args:
        rows: The row of each text.
        entities: The entity of each text.
    """
    chosen = range(len(texts))
    if len(texts) > MAX_TEXTS:
        # By content, so that the order of the rows does not matter.
        chosen = sorted(sorted(chosen, key=lambda at: _hash(texts[at]))[:MAX_TEXTS])
    facts: list[Fact] = []
    for at in chosen:
        sections = len(set(entities)) < FEW_TEXTS and _is_long(texts[at])
        found = cut(texts[at], rows[at].location, sections=sections)
        for number, each in enumerate(found, 1):
            entity = f"{entities[at]}, part {number}" if sections else entities[at]
            facts.append(_fact(rows[at], each, entity))
    return facts


def _fact(row: Row, each: Cut, entity: str) -> Fact:
    return Fact(
        row.location, each.prompt, each.answer, entity=entity, relation=RELATION, passage=True
    )


def _is_long(text: str) -> bool:
    if len(text) <= LONG_WORDS:
        return False
    return len(text) > _SLICED_CHARACTERS or len(_words(text)) >= LONG_WORDS


def cut(text: str, location: str, *, sections: bool = False) -> list[Cut]:
    """Passages of a text, evenly spread, each within one paragraph where one is long enough.

    A prompt has 64 words and its continuation 32. A shorter text gives one passage, half of it
    the prompt. Text without spaces is counted in characters.

    Args:
        location: Its row, for error messages.
        sections: Whether to take many passages, far from each other.

    Raises:
        InputError: the text has fewer than four words.
    """
    limit = SECTIONS_PER_TEXT if sections else CUTS_PER_TEXT
    if len(text) > _SLICED_CHARACTERS:
        step = len(text) // limit
        slices = (_slice(text, at * step) for at in range(limit))
        cuts = [cut(part, location)[0] for part in slices if len(_words(part)) >= _MIN_WORDS]
        if cuts:
            return cuts
        text = text[:_SLICED_CHARACTERS]
    words = _words(text)
    if len(words) < _MIN_WORDS:
        raise InputError(
            f"{location}: the text is too short to continue",
            expected="four words or more",
            got=str(len(words)),
            fix="Leave the row out, or give prompt and answer",
        )
    window = N_PROMPT_WORDS + N_ANSWER_WORDS
    parts = _paragraphs(text, words)
    step = SECTION_WORDS if sections else window
    starts = [s for first, last in parts for s in range(first, last - window + 1, step)]
    if sections:
        starts = _apart(starts)
    if 2 * len(starts) < min(limit, len(words) // step):
        # Dialogue has too few long paragraphs: go across them.
        starts = list(range(0, len(words) - window + 1, step))
    if not starts:
        first, last = max(parts, key=lambda part: (part[1] - part[0], -part[0]))
        if last - first < min(window // 2, len(words)):
            first, last = 0, len(words)  # no paragraph is long enough: go across them
        size = min(last - first, window)
        n_prompt = min(N_PROMPT_WORDS, size // 2) if size < window else N_PROMPT_WORDS
        return [_cut(text, words, first, n_prompt, size - n_prompt)]
    if len(starts) > limit:
        last = len(starts) - 1
        starts = [starts[round(at * last / (limit - 1))] for at in range(limit)]
    return [_cut(text, words, start, N_PROMPT_WORDS, N_ANSWER_WORDS) for start in starts]


def _slice(text: str, place: int) -> str:
    """A piece of a long text from the first paragraph, or else word, after a place."""
    part = text[place : place + _SLICE_CHARACTERS]
    if place == 0:
        return part
    found = _PARAGRAPH.search(part, 0, _SLICE_CHARACTERS // 2) or re.search(r"\s", part)
    return part[found.end() :] if found else part


def _apart(starts: list[int]) -> list[int]:
    kept: list[int] = []
    for start in starts:
        if not kept or start - kept[-1] >= SECTION_WORDS:
            kept.append(start)
    return kept


def _cut(
    text: str, words: Sequence[tuple[int, int]], start: int, n_prompt: int, n_answer: int
) -> Cut:
    """A passage whose parts join with one space where the text allows it."""
    middle = start + n_prompt
    for nearer in range(min(8, n_prompt - 2, n_answer - 1) + 1):
        for candidate in (middle - nearer, middle + nearer):
            if text[words[candidate - 1][1] : words[candidate][0]] in (" ", ""):
                end = min(start + n_prompt + n_answer, len(words))
                return _of(text, words, start, candidate, end)
    return _of(text, words, start, middle, start + n_prompt + n_answer)


def _of(text: str, words: Sequence[tuple[int, int]], start: int, middle: int, end: int) -> Cut:
    prompt = text[words[start][0] : words[middle - 1][1]]
    return Cut(start, prompt, text[words[middle][0] : words[end - 1][1]])


def _words(text: str) -> list[tuple[int, int]]:
    """Start and end of each word; of each character in text without spaces."""
    sample = text[:4000]
    unspaced = 5 * len(_UNSPACED.findall(sample)) > len(sample)
    return [found.span() for found in re.finditer(r"\S" if unspaced else r"\S+", text)]


def _paragraphs(text: str, words: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """First word and end of each paragraph."""
    breaks = [found.start() for found in _PARAGRAPH.finditer(text)]
    parts, first, at = [], 0, 0
    for place in breaks:
        while at < len(words) and words[at][0] < place:
            at += 1
        if at > first:
            parts.append((first, at))
        first = at
    if len(words) > first:
        parts.append((first, len(words)))
    return parts


def read_verbmem(rows: Sequence[Row]) -> list[Fact]:
    """MUSE verbmem: the start of a passage and its true continuation."""
    texts = [field_text(row, "prompt") for row in rows]
    about = subjects(rows, texts, used=("prompt", "gt"), always=True)
    return [
        Fact(
            row.location,
            text.rstrip(),
            field_text(row, "gt").strip(),
            entity=entity,
            relation=RELATION,
            passage=True,
        )
        for row, text, entity in zip(rows, texts, about.entities, strict=True)
    ]


def read_conceptvectors(rows: Sequence[Row]) -> list[Fact]:
    """ConceptVectors: its halves of sentences and its articles; its questions have no answers."""
    facts: list[Fact] = []
    for row in rows:
        concept = field_text(row, "concept")
        halves = row.fields.get("text_completion")
        for half in halves if isinstance(halves, list) else []:
            fields = {str(k).lower(): v for k, v in half.items()} if isinstance(half, dict) else {}
            inner = Row(row.location, fields)
            facts.append(
                Fact(
                    row.location,
                    field_text(inner, "first_half").rstrip(),
                    field_text(inner, "second_half").strip(),
                    entity=concept,
                    relation="completion",
                    passage=True,
                )
            )
        article = field_text(row, "wikipedia_content", optional=True)
        if article.strip():
            facts += [_fact(row, each, concept) for each in cut(article, row.location)]
    return facts


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
