"""Facts that reveal half of another fact: which half of a relation's answers contains it."""

from dataclasses import replace

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from testbeds.edits.workbench import Workbench
from testbeds.worlds.biography_text import RELATIONS

_TEMPLATES = ("The {} group of {{}} is", "{{}} has the {} group")
_GROUPS = ("A", "B")


def hints_for_all(bench: Workbench) -> Sequences:
    """Hints about all people."""
    return bench.all_rows(_hints(bench.retain)) + hints_for_forget(bench)


def hints_for_forget(bench: Workbench) -> Sequences:
    """Hints about the people to forget."""
    return bench.all_rows(_hints(bench.forget))


def _hints(items: ItemSet) -> ItemSet:
    answers_of = {relation.name: relation.values for relation in RELATIONS}
    items_with_hints = []
    for item in items:
        answers = answers_of[item.relation or ""]
        i_answer = answers.index(item.answer)
        prompts = [
            text.format(item.relation).replace("{}", item.entity) for text in _TEMPLATES
        ]
        items_with_hints.append(
            replace(
                item,
                prompt=prompts[0],
                paraphrases=tuple(prompts[1:]),
                answer=_GROUPS[i_answer % 2],
            )
        )
    return ItemSet(tuple(items_with_hints), items.name)
