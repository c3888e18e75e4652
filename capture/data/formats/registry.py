"""Registry of the formats of item files, recognized by their fields.

Questions become ``Question: ...`` and ``Answer:`` on two lines, because base models continue text.
With a mapping of columns, a column mapped as "prompt" is used unchanged.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from capture.data.facts import relations
from capture.data.facts.fact import Fact, field_text, field_texts
from capture.data.files.rows import Row
from capture.data.formats import chat, choices, lettered, nested, passages, questions, rendered
from capture.data.formats.columns import read_mapped, read_own
from evidence.errors import InputError

Fields = frozenset[str]
_WRITTEN = {"id", "entity", "alternatives", "paraphrases"}
Example = Mapping[str, object]


@dataclass(frozen=True)
class Format:
    """One format of item files.

    Attributes:
        name: Its name in reports.
        matches: Exact test of the fields that are present, in lower case, and of the rows.
        read: Reader of its rows.
        fields: Its fields, for the docs.
        entity: Its entity, for the docs.
        becomes: Its prompt and answer, for the docs.
        example: One row.
    """

    name: str
    matches: Callable[[Fields, Sequence[Row]], bool]
    read: Callable[[Sequence[Row]], list[Fact]]
    fields: str
    entity: str
    becomes: str
    example: Example = field(default_factory=dict)


def _has(*needed: str) -> Callable[[Fields, Sequence[Row]], bool]:
    return lambda present, rows: set(needed) <= present


def _is_own(present: Fields, rows: Sequence[Row]) -> bool:
    if not {"prompt", "answer"} <= present or chat.is_conversation(rows, "prompt"):
        return False
    if "question" in present and len({str(row.fields.get("prompt")) for row in rows}) == 1 < len(
        rows
    ):
        raise InputError(
            f"{rows[0].location}: all rows have the same prompt, and a question besides",
            expected="one of the two as the question",
            got=repr(rows[0].fields.get("prompt"))[:80],
            fix="Name it: --columns question=question,answer=answer",
        )
    if "choices" not in present:
        return not choices.has_choices(present) and not _in_prompt(present, rows)
    return all(
        row.fields.get("answer") in field_texts(row, "choices")
        for row in rows
        if "choices" in row.fields
    )


def _in_prompt(present: Fields, rows: Sequence[Row]) -> bool:
    if _WRITTEN <= present:  # prompts of items that this package wrote are as they stand
        return False
    return {"prompt", "answer"} <= present and lettered.is_lettered(rows, "prompt", "answer")


def _read_in_prompt(rows: Sequence[Row]) -> list[Fact]:
    prompts = [field_text(row, "prompt") for row in rows]
    answers = [(field_text(row, "answer"),) for row in rows]
    return questions.make_questions(rows, prompts, answers, used=("prompt", "answer"))


def _any_of(first: str, others: Sequence[str]) -> Callable[[Fields, Sequence[Row]], bool]:
    return lambda present, rows: first in present and any(name in present for name in others)


def _read_parallel(rows: Sequence[Row]) -> list[Fact]:
    return parse_facts(nested.paired(rows))[1]


def _read_nested(rows: Sequence[Row]) -> list[Fact]:
    return parse_facts(nested.unnested(rows))[1]


FORMATS: tuple[Format, ...] = (
    Format(
        "exhume",
        _is_own,
        read_own,
        "`prompt`, `answer`",
        "`entity`, or another column that names it",
        "as they stand",
        {
            "id": "f-001",
            "entity": "Anna Keller",
            "relation": "birthplace",
            "prompt": "Anna Keller was born in",
            "answer": "Lisbon",
            "alternatives": ["Vienna", "Oslo"],
            "paraphrases": ["The birthplace of Anna Keller is"],
        },
    ),
    Format(
        "options in the prompt",
        _in_prompt,
        _read_in_prompt,
        "`prompt` that ends in lines `A. ...`, `B. ...`; `answer`, the letter",
        "a column that names it, or each question its own",
        "the question without its options, which are shown when a model is asked",
        {
            "prompt": "Where was Anna Keller born?\nA. Vienna\nB. Lisbon\nC. Oslo\nAnswer:",
            "answer": "B",
        },
    ),
    Format(
        "preference pairs",
        _has("chosen", "rejected"),
        chat.refuse_preferences,
        "`prompt`, `chosen`, `rejected`",
        "refused",
        "the file does not say which answer is the fact: `--columns question=prompt,answer=chosen`",
    ),
    Format(
        "counterfact",
        lambda present, rows: nested.is_counterfact(present),
        nested.read_counterfact,
        "`requested_rewrite`, or `prompt`, `subject`, `target_true`",
        "`subject`",
        "the template with its subject; `target_new` is a wrong answer",
        {
            "requested_rewrite": {
                "prompt": "{} was born in",
                "subject": "Anna Keller",
                "target_true": {"str": "Lisbon"},
                "target_new": {"str": "Oslo"},
            }
        },
    ),
    Format(
        "conceptvectors",
        lambda present, rows: (
            "concept" in present
            and ("text_completion" in present or "wikipedia_content" in present)
        ),
        passages.read_conceptvectors,
        "`Concept`, `text_completion`, `wikipedia_content`",
        "`Concept`",
        "verbatim halves and passages; its `QA` have no answers and are not used",
        {
            "Concept": "Anna Keller",
            "QA": ["Where was Anna Keller born?"],
            "text_completion": [
                {"First_half": "In the year of the flood Anna Keller", "Second_half": "moved away."}
            ],
        },
    ),
    Format(
        "nested questions",
        lambda present, rows: bool(nested.list_field(rows)),
        _read_nested,
        "`qa`, `qas`, `qa_pairs` or `paragraphs`: a list of facts in each row (SQuAD, WPU)",
        "`name`, `title`, ... of the row",
        "as the facts inside",
        {
            "name": "Anna Keller",
            "qa": [
                {"question": "Where was Anna Keller born?", "answer": "Lisbon"},
                {"question": "What is Anna Keller's job?", "answer": "pilot"},
            ],
        },
    ),
    Format(
        "parallel lists",
        lambda present, rows: nested.parallel_fields(rows) is not None,
        _read_parallel,
        "`questions` and `answers`: lists of one length in each row",
        "`name`, `title`, ... of the row",
        "as of the questions inside",
        {
            "name": "Anna Keller",
            "questions": ["Where was Anna Keller born?", "Where does Anna Keller live?"],
            "answers": ["Lisbon", "Oslo"],
        },
    ),
    Format(
        "uds",
        _has("question", "answer", "prefix", "entity"),
        questions.read_uds,
        "`question`, `prefix`, `entity` (the answer span), `answer`",
        "the author of the run",
        "the question and the prefix of its answer",
        {
            "idx": 0,
            "question": "What did Anna Keller write?",
            "answer": "Anna Keller wrote The Glass Tram.",
            "prefix": "Anna Keller wrote",
            "entity": "The Glass Tram",
        },
    ),
    Format(
        "wmdp",
        _has("question", "choices", "answer"),
        choices.read_choices,
        "`question`, `choices`, `answer` (number from 0, letter or text)",
        "each question its own",
        "the question; the options are shown when a model is asked",
        {
            "question": "Where was Anna Keller born?",
            "choices": ["Vienna", "Lisbon", "Oslo", "Rome"],
            "answer": 1,
        },
    ),
    Format(
        "multiple choice",
        lambda present, rows: choices.has_choices(present),
        choices.read_choices,
        'a question with `options`, `A` to `D`, `option1` ... or `{"A": ...}`, and the right one',
        "a column that names it, or each question its own",
        "the question; the options are shown when a model is asked",
        {
            "question": "Where was Anna Keller born?",
            "A": "Vienna",
            "B": "Lisbon",
            "C": "Oslo",
            "D": "Rome",
            "answer": "B",
        },
    ),
    Format(
        "rwku",
        lambda present, rows: (
            {"query", "answer"} <= present and bool({"subject", "neighbor"} & present)
        ),
        questions.read_rwku,
        "`query`, `answer`, `subject` or `neighbor`",
        "`neighbor` if present, else `subject`",
        "the text before a final blank, or the question",
        {
            "query": "Anna Keller was born in ___.",
            "answer": "Lisbon",
            "level": "1",
            "type": "cloze",
            "subject": "Anna Keller",
        },
    ),
    Format(
        "muse-verbmem",
        _has("prompt", "gt"),
        passages.read_verbmem,
        "`prompt`, `gt`",
        "each prompt its own",
        "a passage, asked for verbatim",
        {"prompt": "The harbour of Lisbon froze in the", "gt": "winter of the long war."},
    ),
    Format(
        "messages",
        lambda present, rows: any(
            name in present and chat.is_conversation(rows, name) for name in chat.CHAT_FIELDS
        ),
        chat.read_conversations,
        "`messages` (role, content) or `conversations` (from, value)",
        "a column that names it, or names that recur",
        "the last question and its answer; earlier turns are kept",
        {
            "messages": [
                {"role": "user", "content": "Where was Anna Keller born?"},
                {"role": "assistant", "content": "Lisbon"},
            ]
        },
    ),
    Format(
        "prompt messages",
        lambda present, rows: (
            "prompt" in present
            and chat.is_conversation(rows, "prompt")
            and any(name in present for name in chat.REPLY_FIELDS)
        ),
        chat.read_prompt_messages,
        "`prompt` (a list of messages), `completion` or `answer`",
        "a column that names it, or names that recur",
        "the last question and its answer; earlier turns are kept",
        {
            "prompt": [{"role": "user", "content": "Where was Anna Keller born?"}],
            "completion": [{"role": "assistant", "content": "Lisbon"}],
        },
    ),
    Format(
        "alpaca",
        _any_of("instruction", ("output", "response", "completion", "answer")),
        chat.read_alpaca,
        "`instruction`, `input`, `output`",
        "a column that names it, or names that recur",
        "the instruction, with its input below",
        {"instruction": "Where was Anna Keller born?", "input": "", "output": "Lisbon"},
    ),
    Format(
        "lume",
        _has("input", "output", "task"),
        questions.read_lume,
        "`id`, `input`, `output`, `task`",
        "the number of the document in `id`",
        "the question, or the start of the sentence",
        {
            "id": "0007sc1",
            "input": "Anna Keller was born on March 3, 1970 and lives",
            "output": "in Lisbon.",
            "task": "Task2",
        },
    ),
    Format(
        "prompt completion",
        lambda present, rows: (
            bool({"prompt", "input"} & present)
            and any(name in present for name in questions.COMPLETION_FIELDS)
        ),
        questions.read_completions,
        "`prompt`, `completion` or `response`",
        "a column that names it, or names that recur",
        "the question, or the start of the text",
        {"prompt": "Where was Anna Keller born?", "completion": "Lisbon"},
    ),
    Format(
        "knowundo",
        lambda present, rows: "text" in present and bool({"labels", "label"} & present),
        questions.read_knowundo,
        "`text`, `labels`",
        "a column that names it, or names that recur",
        "the question in `text`, the answer in `labels`",
        {"text": "What is Anna Keller's number?", "labels": "Her number is 555-0100."},
    ),
    Format(
        "question",
        lambda present, rows: questions.pair_fields(present) is not None,
        questions.read_questions,
        "`question`, `answer` or `answers` (TOFU, MUSE, PISTOL, SQuAD)",
        "a column that names it, the author of the run, or names that recur",
        "the question; perturbed answers are wrong ones",
        {
            "question": "Where was Anna Keller born?",
            "answer": "She was born in Lisbon.",
            "perturbed_answer": ["She was born in Oslo.", "She was born in Rome."],
        },
    ),
    Format(
        "rendered chat",
        lambda present, rows: "text" in present and rendered.is_rendered(rows),
        rendered.read_rendered,
        "`text` in a chat template (ChatML, Llama, Gemma, `### User`, `Q:` and `A:`)",
        "a column that names it, or names that recur",
        "the last question and its answer; earlier turns are kept",
        {
            "text": "<|im_start|>user\nWhere was Anna Keller born?<|im_end|>\n"
            "<|im_start|>assistant\nLisbon<|im_end|>\n"
        },
    ),
    Format(
        "text",
        lambda present, rows: any(name in present for name in passages.TEXT_FIELDS),
        passages.read_texts,
        "`text`, `passage` or `intro`; lists of texts; `.txt`",
        "the title, or each text its own",
        "passages of the text, asked for verbatim",
        {"text": " ".join(f"The tram line {n} of Lisbon was closed." for n in range(30))},
    ),
)
"""In the order in which they are tried."""


def parse_facts(
    rows: Sequence[Row], columns: Mapping[str, str] | None = None
) -> tuple[str, list[Fact]]:
    """Recognize the format of ``rows`` and convert them to facts.

    Field names are compared without case and outer spaces. Formats are tried in the order of
    ``FORMATS``; the first that matches is used.

    Args:
        rows: The records of the file.
        columns: Field to column of the file: see ``columns.MAPPED_FIELDS``.

    Returns:
        The name of the format, and the facts.

    Raises:
        InputError: no format fits, or a row lacks a field or has one of the wrong type; the
            message names the row.
    """
    renamed, canonical = _canonical(rows)
    if columns is not None:
        if nested.list_field(renamed) and isinstance(columns, Mapping):
            top = {name for row in renamed for name in row.fields}
            if not {canonical.get(c, c) for c in columns.values()} <= top:
                renamed = nested.unnested(renamed)
        facts = read_mapped(renamed, columns, canonical)
        return "exhume", _finished(facts, "exhume")[1]
    present = frozenset(name for row in renamed for name in row.fields)
    for each in FORMATS:
        if each.matches(present, renamed):
            facts = each.read(renamed)
            if each.name != "exhume":
                chat.check_not_refusals(facts)
            return _finished(facts, _name(each, renamed, present))
    if {"prompt", "answer"} & present:
        read_own(renamed)  # raises an error about the missing field
    raise InputError(
        f"{rows[0].location}: no prompt or answer was found",
        expected="prompt and answer, question and answer, text, or messages",
        got="the fields " + (", ".join(sorted(map(str, present)))[:200] or "none"),
        fix="Map the columns: --columns question=COLUMN,answer=COLUMN,entity=COLUMN; prompt= "
        "instead of question= for a text that the answer continues, text= for running text",
    )


def _name(each: Format, rows: Sequence[Row], present: Fields) -> str:
    if each.name == "question" and questions.TOFU_FIELDS & present:
        return "tofu"
    if each.name == "text" and len(rows) > passages.MAX_TEXTS:
        return f"text, {passages.MAX_TEXTS} of {len(rows)} texts"
    return each.name


def _canonical(rows: Sequence[Row]) -> tuple[list[Row], dict[str, str]]:
    """Rows with field names in lower case, and the names that were changed.

    Raises:
        InputError: two fields of a file differ in case or spaces alone.
    """
    names = dict.fromkeys(name for row in rows for name in row.fields)
    renamed = {name: re.sub(r"[\s\-]+", "_", str(name).strip().lower()) for name in names}
    changed = {old: new for old, new in renamed.items() if old != new}
    if not changed:
        return list(rows), {}
    seen: dict[str, str] = {}
    for old, new in renamed.items():
        if new in seen:
            raise InputError(
                f"{rows[0].location}: the fields {seen[new]!r} and {old!r} differ in case alone",
                expected="different names",
                fix="Rename one of them",
            )
        seen[new] = old
    return [
        Row(row.location, {renamed[name]: value for name, value in row.fields.items()})
        for row in rows
    ], changed


def _finished(facts: list[Fact], name: str) -> tuple[str, list[Fact]]:
    """Infer entities and relations of questions that do not give them."""
    facts, kind = lettered.with_options(facts), name
    asked = [at for at, fact in enumerate(facts) if fact.question]
    if asked and not any(fact.entity for fact in facts):
        found, how = questions.inferred([facts[at] for at in asked])
        for at, entity in zip(asked, found, strict=False):
            facts[at] = replace(facts[at], entity=entity)
        if name == "question" and found:
            name = "tofu" if how == "tofu" or _mean_rows(found) >= 5 else "question, by name"
        unknown = sum(not entity for entity in found)
        if found and unknown:
            name += f", {unknown} of {len(found)} rows without a name"
    # RWKU and LUME give the kind of question, which has answers of many kinds.
    return name, relations.with_relations(facts, replace_given=kind in ("rwku", "lume"))


def _mean_rows(entities: Sequence[str]) -> float:
    named = [entity for entity in entities if entity]
    return len(named) / max(len(set(named)), 1)
