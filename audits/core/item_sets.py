"""Item sets used by an audit: known items, and never-taught items."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike

from audits.core.config import AuditConfig
from audits.core.scores import Part
from capture.data.invented_entities import invent_items
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.questions import Questions, build_questions, check_entity_count
from evidence.errors import InputError
from evidence.seeds import numpy_rng


@dataclass(frozen=True)
class TextSets:
    """The item sets of a text audit.

    Attributes:
        forget: Forgotten items that the original answers.
        retain: Retain items that it answers, within the budget.
        never_taught: Items about entities that no model saw.
    """

    forget: ItemSet
    retain: ItemSet
    never_taught: ItemSet

    @cached_property
    def _questions(self) -> dict[tuple[Part, int], Questions]:
        return {}

    def questions(self, part: Part, n_prompts: int) -> Questions:
        """The items of one part as questions, with up to ``n_prompts`` prompts an item."""
        key = part, n_prompts
        if key not in self._questions:
            self._questions[key] = build_questions(getattr(self, part), n_prompts)
        return self._questions[key]


MIN_RETAIN_ENTITIES, MIN_NEVER_TAUGHT_ENTITIES = 15, 4
"""Minimum numbers of entities; for the forget set, see the settings."""


def min_entities_of(name: str, config: AuditConfig) -> int:
    """Minimum number of entities of the "forget" or "retain" set that the original must know."""
    return config.min_entities if name == "forget" else MIN_RETAIN_ENTITIES


def select_known_items(
    name: str, items: ItemSet, answered: ArrayLike, config: AuditConfig
) -> ItemSet:
    """The items that the original answers.

    Args:
        name: "forget" or "retain".
        answered: (item,) whether the original answers it.

    Raises:
        InputError: the original knows too little of the set.
    """
    hits = np.asarray(answered, dtype=bool)
    known = tuple(item for item, hit in zip(items, hits, strict=True) if hit)
    selected = ItemSet(known, items.name, items.format)
    needed, present = min_entities_of(name, config), len(selected.entities)
    if present < needed <= len(items.entities):
        raise InputError(
            f"the original does not know the {name} set: it answers "
            f"{len(known)} of {len(items)} items",
            expected=f"right answers about at least {needed} entities",
            got=str(present),
            fix="Check that the first model is the one before unlearning, that "
            "the prompts are in a form it can continue, and that answers are "
            "spelled as it would spell them",
        )
    check_entity_count(selected, needed, f"the {name} set")
    return selected


def within_budget(retain: ItemSet, config: AuditConfig) -> ItemSet:
    """The retain set, reduced to the profile's number of entities."""
    entities, max_entities = retain.entities, config.budget.retain_entities
    if len(entities) <= max_entities:
        return retain
    order = numpy_rng(config.seed, "retain").permutation(len(entities))
    return retain.of_entities([entities[i] for i in order[:max_entities]])


def invent_never_taught(forget: ItemSet, retain: ItemSet, config: AuditConfig) -> ItemSet:
    """Never-taught items that mirror the forget set.

    Several copies are invented, each with new names: the floor is then estimated more precisely
    than the candidate, and hardly widens the interval of their difference.

    Raises:
        InputError: a prompt does not name its entity, or no more names can be invented.
    """
    copies = config.budget.never_taught_copies
    return _invented(forget, retain, copies, config.seed)


@lru_cache(maxsize=4)  # needed by the checks before an audit and by the audit
def _invented(forget: ItemSet, retain: ItemSet, copies: int, seed: int) -> ItemSet:
    made: list[Item] = []
    for copy in range(copies):
        avoid = ItemSet(tuple(replace(x, id=f"{x.id}-r") for x in retain) + tuple(made))
        rng = numpy_rng(seed, "never taught", str(copy))
        made += [replace(item, id=f"{item.id}-{copy}") for item in invent_items(forget, avoid, rng)]
    return ItemSet(tuple(made), "never taught", "invented")


def check_never_taught(never_taught: ItemSet, forget: ItemSet, retain: ItemSet) -> None:
    """Check that given never-taught items share no entity with the other sets.

    Raises:
        InputError: an entity is in another set, or there are too few.
    """
    taught = {normalize_text(entity) for entity in (*forget.entities, *retain.entities)}
    shared = [entity for entity in never_taught.entities if normalize_text(entity) in taught]
    if shared:
        raise InputError(
            f"never-taught items name {shared[0]!r}, which is in the forget or retain file",
            expected="entities no model was taught",
        )
    check_entity_count(never_taught, MIN_NEVER_TAUGHT_ENTITIES, "the never-taught set")
