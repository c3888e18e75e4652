"""Relations of questions: the template that questions about several entities share."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from capture.data.facts.entities import STARTS
from capture.data.facts.fact import Fact

MIN_ENTITIES = 4
"""Entities that must share a template before it is a relation."""
BLANK = "_"
_TOKEN = re.compile(r"\d[\d.,:/\-]*\d|\d|[^\W\d_][\w'’\-]*")
_MIN_WORDS = 2


def with_relations(facts: Sequence[Fact], *, replace_given: bool = False) -> list[Fact]:
    """Fill in the relation of questions whose template at least 4 entities share.

    The template is the question with its entity blanked, or else with all names and numbers
    blanked. Questions without such a template keep their relation, or have none.

    Args:
        replace_given: Whether the template goes before a relation that the file gives.
    """
    asked = [bool(f.question) and (replace_given or not f.relation) for f in facts]
    named = [_without_entity(f) if ask else "" for f, ask in zip(facts, asked, strict=True)]
    masked = [_without_names(f.question) if a else "" for f, a in zip(facts, asked, strict=True)]
    shared = _shared(facts, named) | _shared(facts, masked)
    return [
        replace(fact, relation=next((t for t in templates if t in shared), fact.relation))
        for fact, *templates in zip(facts, named, masked, strict=True)
    ]


def _shared(facts: Sequence[Fact], templates: Sequence[str]) -> set[str]:
    entities: dict[str, set[str]] = defaultdict(set)
    for fact, template in zip(facts, templates, strict=True):
        if template:
            entities[template].add(fact.entity or fact.question)
    return {template for template, about in entities.items() if len(about) >= MIN_ENTITIES}


def _without_entity(fact: Fact) -> str:
    """The question with its entity blanked; "" if the question does not name it."""
    if not fact.entity:
        return ""
    pattern = re.escape(fact.entity)
    if fact.entity < "\u2e80":  # later scripts write words without spaces
        pattern = rf"(?<!\w){pattern}(?!\w)"
    template, n = re.subn(pattern, BLANK, fact.question, flags=re.IGNORECASE)
    return template if n and _is_template(template) else ""


def _without_names(question: str) -> str:
    """The question with names and numbers blanked.

    A capitalized word is a name unless it begins a sentence; two in a row are one anywhere.
    """
    tokens = list(_TOKEN.finditer(question))
    parts, end, blanked_to = [], 0, -1
    for at, found in enumerate(tokens):
        word = found.group().removesuffix("'s").removesuffix("’s").rstrip("'’-")
        if not (word[:1].isdigit() or _is_name(question, tokens, at, blanked_to)):
            continue
        between = question[end : found.start()]
        # "Ilse Vorländer" is one blank.
        if not (blanked_to == end and end and between == " "):
            parts += [between, BLANK]
        end = blanked_to = found.start() + len(word)
    template = "".join([*parts, question[end:]])
    return template if parts and _is_template(template) else ""


def _is_name(text: str, tokens: list[re.Match[str]], at: int, blanked_to: int) -> bool:
    start, word = tokens[at].start(), tokens[at].group()
    if not word[:1].isupper():
        return False
    before = text[:start].rstrip(" \"'“‘«(")
    if before and before[-1] not in ".?!:\n":
        return True
    if 0 < blanked_to == start - 1:  # goes on with a name that has a point, "J. Smith"
        return True
    following = tokens[at + 1] if at + 1 < len(tokens) else None
    return (
        following is not None
        and word.casefold() not in STARTS
        and following.group()[:1].isupper()
        and text[tokens[at].end() : following.start()] == " "
    )


def _is_template(template: str) -> bool:
    words = _TOKEN.findall(template)
    lower = any(word[:1].islower() for word in words)
    return (lower and len(words) >= _MIN_WORDS) or not template.isascii()
