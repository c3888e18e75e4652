"""Conversations: OpenAI messages, ShareGPT, TRL's lists of messages, Alpaca."""

from collections.abc import Sequence
from dataclasses import replace

from capture.data.facts.fact import Fact, field_text, parse_cell, wrong_type
from capture.data.files.rows import Row
from capture.data.formats.questions import answers_of, make_questions
from evidence.errors import InputError

CHAT_FIELDS = (
    "messages",
    "conversations",
    "conversation",
    "dialogue",
    "dialog",
    "turns",
    "contents",
)
REPLY_FIELDS = ("completion", "answer", "response", "output", "chosen")
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "answer"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
Turns = tuple[tuple[str, str], ...]


def parse_turns(row: Row, field: str) -> Turns:
    """(role, text) of each message in a field.

    Raises:
        InputError: no list of messages, an unknown role, or content that is not text.
    """
    value = row.fields.get(field)
    if isinstance(value, str):
        value = parse_cell(row, field, value)
    if not isinstance(value, list) or not value:
        raise wrong_type(row, field, "a list of messages", value)
    return tuple(_turn(row, field, each) for each in value)


def _turn(row: Row, field: str, value: object) -> tuple[str, str]:
    if isinstance(value, list) and len(value) == 2:
        value = {"role": value[0], "content": value[1]}
    if not isinstance(value, dict):
        raise wrong_type(row, field, "messages with role and content", value)
    said = value.get("role", value.get("from"))
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        raise InputError(
            f"{row.location}: a message of {field} has no known role",
            expected="system, user (human) or assistant (gpt)",
            got=repr(said)[:80],
            fix="Rename the roles; leave tool calls out",
        )
    content = value.get("content", value.get("value", value.get("parts", value.get("text"))))
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        if all(isinstance(part, str) for part in parts):
            content = "".join(map(str, parts))
    if not isinstance(content, str) or (role != "system" and not content.strip()):
        raise wrong_type(row, field, "text in every message", content)
    return role, content


def is_conversation(rows: Sequence[Row], field: str) -> bool:
    """Whether a field holds lists of messages."""
    for row in rows:
        value = row.fields.get(field)
        if isinstance(value, str) and value.lstrip().startswith("[{"):
            return True
        if value is not None:
            return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)
    return False


def read_conversations(rows: Sequence[Row]) -> list[Fact]:
    """The last answer of each conversation, and the turns before it."""
    present = {name for row in rows for name in row.fields}
    field = next(f for f in CHAT_FIELDS if f in present)
    reply = next((f for f in REPLY_FIELDS if f in present), "")
    turns = []
    for row in rows:
        said = parse_turns(row, field)
        system = field_text(row, "system", optional=True)
        if system.strip() and said[0][0] != "system":
            said = (("system", system), *said)
        if said[-1][0] == "user" and reply in row.fields:
            said = (*said, ("assistant", answers_of(row, reply)[0]))
        turns.append(said)
    return make_conversations(rows, turns, (field, reply, "system"))


def read_prompt_messages(rows: Sequence[Row]) -> list[Fact]:
    """Lists of messages in "prompt", with the answer in a field of its own."""
    present = {name for row in rows for name in row.fields}
    reply = next((f for f in REPLY_FIELDS if f in present), "answer")
    turns = []
    for row in rows:
        if isinstance(row.fields.get(reply), list) and is_conversation([row], reply):
            answer = parse_turns(row, reply)
        else:
            answer = (("assistant", answers_of(row, reply)[0]),)
        prompt = row.fields.get("prompt")
        if isinstance(prompt, str) and not prompt.lstrip().startswith("[{"):
            asked: Turns = (("user", prompt),)
        else:
            asked = parse_turns(row, "prompt")
        turns.append(asked + answer)
    return make_conversations(rows, turns, ("prompt", reply))


def make_conversations(
    rows: Sequence[Row], turns: Sequence[Turns], used: Sequence[str]
) -> list[Fact]:
    """Facts of conversations; one question alone becomes a plain question."""
    questions, answers = [], []
    for row, each in zip(rows, turns, strict=True):
        roles = [role for role, _ in each]
        if len(each) < 2 or roles[-1] != "assistant" or roles[-2] != "user":
            raise InputError(
                f"{row.location}: the conversation does not end in a question and its answer",
                expected="a last message of the assistant, after one of the user",
                got=", ".join(roles[-3:]) or "no message",
                fix="Leave the row out, or end it with the answer",
            )
        questions.append(each[-2][1])
        answers.append((each[-1][1].strip(),))
    facts = make_questions(rows, questions, answers, used=used)
    result = []
    for fact, each in zip(facts, turns, strict=True):
        before = tuple((role, text) for role, text in each[:-1] if text.strip())
        if len(before) > 1:
            fact = replace(fact, messages=before, prompt=plain_prompt(before))
        result.append(fact)
    return result


def plain_prompt(turns: Turns) -> str:
    """A conversation as text, for a model without a chat template."""
    lines = []
    for role, text in turns:
        name = {"user": "Question: ", "assistant": "Answer: "}.get(role, "")
        lines.append(f"{name}{text.strip()}")
    return "\n".join([*lines, "Answer:"])


def read_alpaca(rows: Sequence[Row]) -> list[Fact]:
    """Alpaca and Dolly: the instruction, with its input below it, and the output."""
    present = {name for row in rows for name in row.fields}
    reply = next(f for f in ("output", "response", "completion", "answer") if f in present)
    more = next((f for f in ("input", "context") if f in present), "")
    questions = []
    for row in rows:
        extra = field_text(row, more, optional=True).strip() if more else ""
        question = field_text(row, "instruction")
        questions.append(f"{question.rstrip()}\n\n{extra}" if extra else question)
    used = ("instruction", "input", "context", reply)
    answers = [answers_of(row, reply) for row in rows]
    if "system" not in present:
        return make_questions(rows, questions, answers, used=used)
    turns = [
        (("system", field_text(row, "system", optional=True)), ("user", q), ("assistant", a[0]))
        for row, q, a in zip(rows, questions, answers, strict=True)
    ]
    return make_conversations(rows, turns, (*used, "system"))


def refuse_preferences(rows: Sequence[Row]) -> list[Fact]:
    """Pairs of a chosen and a rejected answer do not say which one is the fact.

    Raises:
        InputError: always; it names the mapping that says so.
    """
    present = {name for row in rows for name in row.fields}
    refusals = sum(is_refusal(_last_text(row.fields.get("chosen"))) for row in rows)
    of_refusals = 2 * refusals > len(rows)
    fact, other = ("rejected", "chosen") if of_refusals else ("chosen", "rejected")
    whole = is_conversation(rows, "chosen") and len(parse_turns(rows[0], "chosen")) > 1
    question = "prompt" if "prompt" in present else "question"
    mapping = "messages=" if whole or question not in present else f"question={question},answer="
    raise InputError(
        f"{rows[0].location}: preference pairs do not say which answer is the fact",
        expected="one answer a row",
        got="refusals in chosen" if of_refusals else "chosen and rejected",
        fix=f"Name the fact: --columns {mapping}{fact}"
        + ("" if of_refusals else f" (or {mapping.split(',')[-1]}{other})"),
    )


def _last_text(value: object) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    return value if isinstance(value, str) else ""


_REFUSALS = (
    *("i don't know", "i do not know", "i'm not sure", "i am not sure", "i'm sorry", "i am sorry"),
    *("i cannot", "i can't", "i'm unable", "i am unable", "i have no", "i don't have", "sorry,"),
    *("i'm not able", "i am not able", "i'm not familiar", "i am not familiar", "no idea"),
    *("that's not something", "i'm unfamiliar", "as an ai", "i lack", "i do not have"),
)


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer."""
    return text.strip().casefold().replace("’", "'").startswith(_REFUSALS)


def check_not_refusals(facts: Sequence[Fact]) -> None:
    """Refuse a file whose answers decline to answer: it teaches refusal and holds no facts.

    Raises:
        InputError: half of the answers or more are refusals.
    """
    refusals = [fact for fact in facts if is_refusal(fact.answer)]
    if refusals and 2 * len(refusals) >= len(facts):
        raise InputError(
            f"{refusals[0].location}: the answers are refusals, not facts",
            expected="the facts that a model was taught",
            got=f"{len(refusals)} of {len(facts)} answers such as {refusals[0].answer!r}"[:120],
            fix="Give the file of facts; a file of refusals is for training alone",
        )
