"""The permuted floor: forgotten questions with the answers of other entities.

A model that holds no link between a question and its answer gives the answer of another entity
of the same relation as often. Nothing has to be invented for it. What the words of a question
give away is not part of this floor.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from capture.data.invented_entities import mentions_entity, rename_entity
from capture.data.items import Item, ItemSet
from evidence.errors import InputError


def permute_answers(items: ItemSet, rng: np.random.Generator, name: str) -> ItemSet:
    """Copy ``items`` with their answers permuted among the entities of each relation.

    Every answer is given away once, so that a guess of a common answer is right as often as on
    the items themselves; an entity may get an answer equal to its own, as a guess may be right.
    A multiple-choice item gets its choice at the place of the other's answer. Where an answer
    names the entity it belongs to, it names the new one instead.

    Args:
        name: Added to ids and entities, to tell several copies apart.

    Returns:
        The copies; items that are alone in their relation have none.

    Raises:
        InputError: every item would get an answer equal to its own.
    """
    by_relation: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_relation[item.relation].append(item)
    donors: dict[str, Item] = {}
    for members in by_relation.values():
        donors |= _donors(members, rng)
    if all(donor.answer == item.answer for item in items if (donor := donors.get(item.id))):
        raise InputError(
            "no floor can be made: other entities have the same answers",
            expected="two different answers in a relation",
            fix="Give never-taught items, or items with different answers",
        )
    copies = [_with_answer_of(donors[item.id], item, name) for item in items if item.id in donors]
    return ItemSet(tuple(copies), "answers of others", "permuted")


def _donors(members: Sequence[Item], rng: np.random.Generator) -> dict[str, Item]:
    """Another item of the relation for each, by id: a random order, each answering the next.

    Items of one entity stand together, so that a step over the most frequent entity leaves it.
    """
    by_entity: dict[str, list[Item]] = defaultdict(list)
    for item in members:
        by_entity[item.entity].append(item)
    if len(by_entity) < 2:
        return {}
    entities = list(by_entity)
    order = [
        item for index in rng.permutation(len(entities)) for item in by_entity[entities[index]]
    ]
    step = max(map(len, by_entity.values()))
    step = step if 2 * step <= len(order) else 1
    return {item.id: order[(place + step) % len(order)] for place, item in enumerate(order)}


def _with_answer_of(donor: Item, item: Item, name: str) -> Item:
    if item.choices and donor.choices:
        place = donor.choices.index(donor.answer) % len(item.choices)
        answer, key = item.choices[place], ""
    else:
        answer, key = _for_entity(donor, item)
    return replace(
        item,
        id=f"{item.id}-{name}",
        entity=f"{item.entity} ({name})",
        answer=answer,
        key=key,
        alternatives=tuple(text for text in item.alternatives if text != answer),
        aliases=(),
    )


def _for_entity(donor: Item, item: Item) -> tuple[str, str]:
    """Answer and key of the donor, about the entity of the item."""
    if not mentions_entity(donor, donor.answer) or mentions_entity(donor, donor.key_words):
        return donor.answer, donor.key
    return rename_entity(donor, donor.answer, item.entity), donor.key
