"""Conversations that were written into one text with a chat template."""

import re
from collections.abc import Sequence

from capture.data.facts.fact import Fact, field_text
from capture.data.files.rows import Row
from capture.data.formats.chat import Turns, make_conversations
from evidence.errors import InputError

_USER = ("user", "human", "instruction", "question", "q", "prompter")
_ASSISTANT = ("assistant", "model", "response", "answer", "a", "gpt", "output")
_ROLE = "|".join(("system", *_USER, *_ASSISTANT))
_END = (
    r"(?=<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|<\|endoftext\|>|</s>|<\||<start_of|\Z)"
)
# How the turns of a text begin: ChatML, Llama 3, Gemma, Zephyr and Phi; headings; plain names.
_TEMPLATES = tuple(
    re.compile(pattern, re.DOTALL | re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"<\|im_start\|>\s*({_ROLE})\s*\n(.*?){_END}",
        rf"<\|start_header_id\|>\s*({_ROLE})\s*<\|end_header_id\|>(.*?){_END}",
        rf"<start_of_turn>\s*({_ROLE})\s*\n(.*?){_END}",
        rf"<\|({_ROLE})\|>(.*?){_END}",
        rf"^\#\#\#[ ]*({_ROLE})[ ]*:?(.*?)(?=^\#\#\#|</s>|<\|endoftext\|>|\Z)",
        rf"^({_ROLE})[ ]*:(.*?)(?=^(?:{_ROLE})[ ]*:|</s>|<\|endoftext\|>|\Z)",
    )
)
_LLAMA_2 = re.compile(
    r"\[INST\]\s*(?:<<SYS>>(?P<system>.*?)<</SYS>>)?(?P<user>.*?)\[/INST\]"
    r"(?P<assistant>.*?)(?=</s>|<s>|\[INST\]|\Z)",
    re.DOTALL,
)
_MARK = re.compile(r"<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|\[INST\]")
_SIGNS = re.compile(r"<\|?[a-z_]+\|?>|</?s>|\s+|^$")


def rendered_turns(text: str) -> Turns:
    """(role, text) of each turn of a rendered conversation; () for other texts."""
    if "[INST]" in text:
        return tuple(
            (role, said.strip())
            for found in _LLAMA_2.finditer(text)
            for role in ("system", "user", "assistant")
            if (said := found[role] or "").strip()
        )
    for template in _TEMPLATES:
        found = list(template.finditer(text))
        # Text before the first turn, other than a sign, belongs to no conversation.
        if len(found) >= 2 and not _SIGNS.sub("", text[: found[0].start()]):
            return tuple((_role(each[1]), each[2].strip()) for each in found)
    return ()


def _role(name: str) -> str:
    name = name.lower()
    return "system" if name == "system" else "user" if name in _USER else "assistant"


def is_rendered(rows: Sequence[Row]) -> bool:
    """Whether the texts are conversations: all of them, or any with the signs of a template."""
    texts = [row.fields.get("text") for row in rows]
    if not all(isinstance(text, str) for text in texts):
        return False
    known = [str(text) for text in texts]
    return any(map(_MARK.search, known)) or all(map(_has_answer, known))


def _has_answer(text: str) -> bool:
    roles = [role for role, _ in rendered_turns(text)]
    return roles[-2:] == ["user", "assistant"]


def read_rendered(rows: Sequence[Row]) -> list[Fact]:
    """The last question and answer of each conversation.

    Raises:
        InputError: a text is no conversation in a known template.
    """
    turns = []
    for row in rows:
        text = field_text(row, "text")
        if not _has_answer(text):
            raise InputError(
                f"{row.location}: the text is no conversation that ends in an answer",
                expected="turns of user and assistant in one of the known chat templates",
                got=text[:80],
                fix="Give messages: a list of role and content in each row",
            )
        turns.append(rendered_turns(text))
    return make_conversations(rows, turns, ("text",))
