"""Questions and answers: TOFU, MUSE knowmem, PISTOL, SQuAD, KnowUnDo, UDS, RWKU, LUME."""

import re
from collections.abc import Sequence
from dataclasses import replace

from capture.data.facts.entities import (
    QUESTIONS_PER_AUTHOR,
    infer_authors,
    infer_by_names,
    main_names,
)
from capture.data.facts.fact import (
    Fact,
    as_prompt,
    field_label,
    field_text,
    field_texts,
    is_rendered_prompt,
    is_turn,
    parse_cell,
    wrong_type,
)
from capture.data.facts.prompts import question_prompt
from capture.data.facts.subjects import subjects
from capture.data.files.rows import Row
from evidence.errors import InputError

QUESTION_FIELDS = ("question", "query", "questions", "q", "src", "input")
ANSWER_FIELDS = (
    *("answer", "answers", "best_answer", "possible_answers", "gold", "ground_truth", "a"),
    *("output", "response", "correct_answer", "target", "labels", "label"),
)
COMPLETION_FIELDS = (
    *("completion", "response", "output", "target", "gold", "ground_truth", "labels"),
)
WRONG_FIELDS = ("perturbed_answer", "incorrect_answers", "wrong_answers", "distractors")
ALIAS_FIELDS = ("paraphrased_answer", "correct_answers", "aliases")
TOFU_FIELDS = frozenset({"perturbed_answer", "paraphrased_answer", "paraphrased_question"})
_NUMBERED_WRONG = re.compile(r"(distractor|incorrect_answer|wrong_answer)_?\d")
_LUME_ID = re.compile(r"(?P<document>.+?)(?P<kind>sc|qa)\d+")


def pair_fields(present: frozenset[str]) -> tuple[str, str] | None:
    """The fields of question and answer; None if one is missing."""
    question = next((f for f in QUESTION_FIELDS if f in present), "")
    answer = next((f for f in ANSWER_FIELDS if f in present and f != question), "")
    return (question, answer) if question and answer else None


def read_questions(rows: Sequence[Row]) -> list[Fact]:
    """Rows of a question and one or more answers; all answers but the first are aliases."""
    present = frozenset(name for row in rows for name in row.fields)
    question_field, answer_field = pair_fields(present) or ("question", "answer")
    return make_questions(
        rows,
        [field_text(row, question_field) for row in rows],
        [answers_of(row, answer_field) for row in rows],
        used=(question_field, answer_field),
    )


def make_questions(
    rows: Sequence[Row],
    questions: Sequence[str],
    answers: Sequence[tuple[str, ...]],
    *,
    used: Sequence[str] = (),
) -> list[Fact]:
    """Facts of questions, with the entities and wrong answers that the rows give."""
    texts = [f"{q}\n{a[0]}" for q, a in zip(questions, answers, strict=True)]
    about = subjects(rows, texts, used=used)
    facts = []
    stripped = [tuple(map(str.strip, right)) for right in answers]
    for at, (row, question, right) in enumerate(zip(rows, questions, stripped, strict=True)):
        others = [*right[1:], *_all_texts(row, ALIAS_FIELDS)]
        paraphrases = field_texts(row, "paraphrased_question", bars=False)
        facts.append(
            Fact(
                row.location,
                as_prompt(question),
                right[0],
                entity=about.entities[at],
                relation=about.relations[at],
                alternatives=_wrong_answers(row),
                paraphrases=tuple(map(question_prompt, paraphrases)),
                aliases=tuple(dict.fromkeys(t for t in others if t != right[0])),
                question=question.strip(),
            )
        )
    return facts


def _wrong_answers(row: Row) -> tuple[str, ...]:
    numbered = [name for name in row.fields if _NUMBERED_WRONG.fullmatch(name)]
    return _all_texts(row, (*WRONG_FIELDS, *sorted(numbered)))


def _all_texts(row: Row, fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for field in fields for text in field_texts(row, field, bars=False))


def answers_of(row: Row, field: str) -> tuple[str, ...]:
    """The right answers of a row: a text, a list, SQuAD's or TriviaQA's object."""
    value = row.fields.get(field)
    if isinstance(value, str):
        value = parse_cell(row, field, value) if value.strip() else value
    if isinstance(value, dict):
        texts = value.get("text", value.get("value"))
        aliases = value.get("aliases", [])
        both = [*(texts if isinstance(texts, list) else [texts])]
        both += aliases if isinstance(aliases, list) else []
        value = [each for each in both if each is not None]
    if isinstance(value, list):
        listed = [each.get("text") if isinstance(each, dict) else each for each in value]
        if not listed:
            raise InputError(
                f"{row.location} has no answer",
                expected=f"one text or more in {field}",
                got=f"an empty list in {field}",
                fix="Leave questions without an answer out",
            )
        right = [text for text in listed if isinstance(text, str) and text.strip()]
        if len(right) < len(listed):
            wrong = next(t for t in listed if not isinstance(t, str) or not t.strip())
            raise wrong_type(row, field, "texts, none empty", wrong)
        return tuple(dict.fromkeys(right))
    if isinstance(value, int) and not isinstance(value, bool):
        return (str(value),)
    return (field_text(row, field),)


def inferred(facts: Sequence[Fact]) -> tuple[list[str], str]:
    """Entities of questions that do not name theirs, and how they were found.

    Runs of twenty in file order, as TOFU has them, go first, unless the names in them say that
    they are about several entities; names that recur come next.
    """
    questions = [fact.question for fact in facts]
    answers = [fact.answer for fact in facts]
    runs, names = infer_authors(questions, answers), infer_by_names(questions, answers)
    if runs is not None and not (names and _are_mixed(runs, names)):
        # A run without a name is still one entity, named after its first question.
        entities = [
            name or f"author of: {questions[at - at % QUESTIONS_PER_AUTHOR]}"
            for at, name in enumerate(runs)
        ]
        return entities, "tofu"
    return names or [], "names"


def _are_mixed(runs: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a fifth of the runs are about another entity in 30 % of their rows."""
    starts = range(0, len(runs), QUESTIONS_PER_AUTHOR)
    mixed = 0
    for start in starts:
        rows = range(start, start + QUESTIONS_PER_AUTHOR)
        others = (names[row] for row in rows if names[row])
        others = sum(name not in runs[start] and runs[start] not in name for name in others)
        mixed += others >= 0.3 * QUESTIONS_PER_AUTHOR
    return mixed >= 0.2 * len(starts)


def read_knowundo(rows: Sequence[Row]) -> list[Fact]:
    """KnowUnDo: the question, or the start of a sentence, in "text", its answer in "labels"."""
    answer = "labels" if any("labels" in row.fields for row in rows) else "label"
    for row in rows:
        if not isinstance(row.fields.get(answer), str | list | dict | None):
            raise InputError(
                f"{row.location}: {answer} is a class, not an answer",
                expected=f"the text of the answer in {answer}",
                got=repr(row.fields.get(answer))[:80],
                fix="Name the column of the answer: --columns question=text,answer=COLUMN",
            )
    questions = [field_text(row, "text") for row in rows]
    return _turns_or_starts(rows, questions, answer, ("text", answer), {})


def read_lume(rows: Sequence[Row]) -> list[Fact]:
    """LUME: completions and questions about one document; its number is the entity."""
    kinds, documents = {}, []
    for at, row in enumerate(rows):
        found = _LUME_ID.fullmatch(field_label(row, "id"))
        documents.append(found["document"] if found else "")
        if found:
            kinds[at] = found["kind"] == "qa"
    inputs = [field_text(row, "input") for row in rows]
    facts = _turns_or_starts(rows, inputs, "output", ("id", "input", "output"), kinds)
    return [
        replace(fact, id=field_label(row, "id"), entity=fact.entity or document)
        for fact, row, document in zip(facts, rows, documents, strict=True)
    ]


def _turns_or_starts(
    rows: Sequence[Row],
    inputs: Sequence[str],
    answer: str,
    used: Sequence[str],
    asked: dict[int, bool],
) -> list[Fact]:
    """Questions, except where a text is the start of a sentence, which stays as it is."""
    answers = [answers_of(row, answer) for row in rows]
    facts = make_questions(rows, inputs, answers, used=used)
    return [
        fact if asked.get(at, is_turn(text)) else replace(fact, prompt=text.rstrip())
        for at, (fact, text) in enumerate(zip(facts, inputs, strict=True))
    ]


def read_completions(rows: Sequence[Row]) -> list[Fact]:
    """Prompts and completions: a question, or the start of a text, which stays as it is."""
    present = frozenset(name for row in rows for name in row.fields)
    start = "prompt" if "prompt" in present else "input"
    answer = next(f for f in COMPLETION_FIELDS if f in present)
    inputs = [field_text(row, start) for row in rows]
    replies = answer in ("response", "output")
    asked = {at: replies and not is_rendered_prompt(text) for at, text in enumerate(inputs)}
    asked = {at: True for at, is_asked in asked.items() if is_asked}
    return _turns_or_starts(rows, inputs, answer, (start, answer), asked)


def read_rwku(rows: Sequence[Row]) -> list[Fact]:
    """RWKU: the subject, or the neighbor where there is one, is the entity."""
    facts = make_questions(
        rows,
        [field_text(row, "query") for row in rows],
        [answers_of(row, "answer") for row in rows],
        used=("query", "answer"),
    )
    facts = [replace(f, prompt=cloze_prompt(f.question)) for f in facts]
    return [
        fact if fact.entity else replace(fact, entity=field_label(row, "subject"))
        for fact, row in zip(facts, rows, strict=True)
    ]


def cloze_prompt(query: str) -> str:
    """The prompt of a cloze: the text before a final blank, else a question."""
    before, mark, after = query.partition("__")
    if mark and before.strip() and not after.strip("_ .?!\"'"):
        return before.rstrip()
    if mark:
        return f"Fill in the blank.\n{question_prompt(query)}"
    return question_prompt(query)


def read_uds(rows: Sequence[Row]) -> list[Fact]:
    """UDS: the field "entity" holds the answer span, not the subject of the row."""
    groups: dict[int | str, list[Row]] = {}
    for row in rows:
        number = row.fields.get("idx")
        key: int | str = row.location
        if isinstance(number, int) and not isinstance(number, bool):
            key = number // QUESTIONS_PER_AUTHOR
        groups.setdefault(key, []).append(row)
    texts = [
        [f"{field_text(row, 'question')}\n{field_text(row, 'answer')}" for row in group]
        for group in groups.values()
    ]
    facts = {}
    for (key, group), name in zip(groups.items(), main_names(texts), strict=True):
        # Without a row number, runs are unknown and each row is an entity of its own.
        entity = (name or f"author {key}") if isinstance(key, int) else ""
        for row in group:
            prefix = field_text(row, "prefix", optional=True)
            prompt = question_prompt(field_text(row, "question"))
            prompt += f" {prefix}" if prefix else ""
            facts[row.location] = Fact(
                row.location, prompt, field_text(row, "entity"), entity=entity
            )
    return [facts[row.location] for row in rows]
