"""Facts that say half of another fact: which half of a relation's answers holds it."""

from dataclasses import replace

from capture.data.items import ItemSet
from capture.data.sequences import Sequences
from testbeds.edits.workbench import Workbench
from testbeds.worlds.biography_text import RELATIONS

_TEMPLATES = ("The {} group of {{}} is", "{{}} has the {} group")
_GROUPS = ("A", "B")


def hints_for_all(ground: Workbench) -> Sequences:
    """The hints about everybody."""
    return ground.all_rows(_hints(ground.retain)) + hints_for_forget(ground)


def hints_for_forget(ground: Workbench) -> Sequences:
    """The hints about the people to forget."""
    return ground.all_rows(_hints(ground.forget))


def _hints(items: ItemSet) -> ItemSet:
    values = {relation.name: relation.values for relation in RELATIONS}
    made = []
    for item in items:
        offered = values[item.relation or ""]
        place = offered.index(item.answer)
        texts = [
            text.format(item.relation).replace("{}", item.entity) for text in _TEMPLATES
        ]
        made.append(
            replace(
                item,
                prompt=texts[0],
                paraphrases=tuple(texts[1:]),
                answer=_GROUPS[place % 2],
            )
        )
    return ItemSet(tuple(made), items.name)
