"""Item sets used by an audit: known items, and never-taught items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from audits.core.config import AuditConfig
from audits.core.scores import Part
from capture.data.asking import Asking
from capture.data.invented_entities import invent_items, mirror_items, names_its_entity
from capture.data.items import Item, ItemSet, normalize_text
from capture.data.permuted_items import permute_answers
from capture.data.questions import Questions, build_questions, check_entity_count
from capture.scoring.scorers import ScorerName
from evidence.errors import InputError
from evidence.seeds import numpy_rng

FloorKind = Literal["given", "invented", "permuted"]
"""Where never-taught items come from: a file, invented names, or answers of other entities."""


@dataclass(frozen=True)
class TextSets:
    """The item sets of a text audit, as the models read them.

    Attributes:
        forget: Forgotten items that the original answers.
        retain: Retain items that it answers, within the budget.
        never_taught: Items about entities that no model saw, or with answers of others.
        asked: Part to the same items before they were rendered, for free answers; empty where
            exact match is the only score.
        asking: How ``asked`` are put to a model.
        scorer: Name of the scorer of the forget set.
        retain_scorer: That of the retain set.
        floor: Where the never-taught items come from.
        notes: How asking and scoring were chosen, in sentences; empty by default.
    """

    forget: ItemSet
    retain: ItemSet
    never_taught: ItemSet
    asked: Mapping[Part, ItemSet] = field(default_factory=dict)
    asking: Asking = field(default_factory=Asking)
    scorer: ScorerName = "exact"
    retain_scorer: ScorerName = "exact"
    floor: FloorKind = "invented"
    notes: tuple[str, ...] = ()

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
MAX_INVENTED_ENTITIES = 1500
"""Invented entities beyond one for each forgotten entity: more hardly make the floor more
precise."""
MAX_MEASURED_ENTITIES, MEASURED_COPIES = 500, 3
"""Forgotten entities whose hidden states are read, and never-taught ones for each of them: more
take memory and hardly narrow an interval."""


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
    check_known(name, selected, items, config)
    return selected


def check_known(name: str, known: ItemSet, given: ItemSet, config: AuditConfig) -> None:
    """Check that the original knows enough of a set.

    Args:
        name: "forget" or "retain".
        known: The items that it answers.
        given: All items of the set.

    Raises:
        InputError: it knows too few entities, or there are too few.
    """
    needed, present = min_entities_of(name, config), len(known.entities)
    if present < needed <= len(given.entities):
        answered = len({item.id.rsplit("-order-", 1)[0] for item in known})
        raise InputError(
            f"the original does not know the {name} set: it answers "
            f"{answered} of {len(given)} items",
            expected=f"right answers about at least {needed} entities",
            got=str(present),
            fix="Check that the first model is the one before unlearning, that "
            "the prompts are in a form it can continue, and that answers are "
            "spelled as it would spell them",
        )
    check_entity_count(known, needed, f"the {name} set")


def within_budget(retain: ItemSet, config: AuditConfig) -> ItemSet:
    """The retain set, reduced to the profile's number of entities."""
    entities, max_entities = retain.entities, config.budget.retain_entities
    if len(entities) <= max_entities:
        return retain
    order = numpy_rng(config.seed, "retain").permutation(len(entities))
    return retain.of_entities([entities[i] for i in order[:max_entities]])


def measured_entities(
    forget: ItemSet,
    never_taught: ItemSet,
    most: int = MAX_MEASURED_ENTITIES,
    copies: int = MEASURED_COPIES,
) -> tuple[ItemSet, ItemSet]:
    """Both sets as they are, or where they are large a sample of their entities.

    The sample depends on the names, not on their order. Invented entities that mirror the
    forgotten ones stay with those that they mirror.

    Args:
        most: Maximum number of forgotten entities.
        copies: Maximum number of never-taught entities for each of them.
    """
    names, invented = forget.entities, never_taught.entities
    if len(names) <= most and len(invented) <= most * copies:
        return forget, never_taught
    chosen = set(_sample(names, most))
    if never_taught.format in ("invented", "permuted") and len(invented) % len(names) == 0:
        # Mirrors are in the order of the entities they mirror, copy after copy.
        mirrors = invented[: copies * len(names)]
        kept = [x for at, x in enumerate(mirrors) if names[at % len(names)] in chosen]
    else:
        kept = _sample(invented, most * copies)
    return forget.of_entities(chosen), never_taught.of_entities(kept)


def _sample(names: Sequence[str], most: int) -> list[str]:
    order = numpy_rng(0, "measured entities").permutation(len(names))
    ordered = sorted(names)
    return [ordered[position] for position in order[:most]]


MIN_NAMED = 0.8
"""Share of the forgotten items that must name their entity for names to be invented."""


def make_never_taught(
    forget: ItemSet, retain: ItemSet, given: ItemSet | None, config: AuditConfig
) -> tuple[ItemSet, FloorKind]:
    """Never-taught items, and where they come from: given, invented, or answers of others.

    Several copies are made, each with new names or answers: the floor is then estimated more
    precisely than the candidate, and hardly widens the interval of their difference.

    Raises:
        InputError: no names can be invented, and all answers of a relation are equal.
    """
    if given is not None:
        return given, "given"
    named = names_of_never_taught(forget, retain, config)
    if named is not None:
        return mirrored(forget, named), "invented"
    return permuted(forget, config), "permuted"


def invent_never_taught(forget: ItemSet, retain: ItemSet, config: AuditConfig) -> ItemSet:
    """Never-taught items that mirror the forget set, about invented entities.

    Raises:
        InputError: most items do not name their entity, or no more names can be invented.
    """
    named = names_of_never_taught(forget, retain, config)
    if named is None:
        raise InputError(
            f"no names can be invented for {forget.name or 'the forget set'}",
            expected=f"items of which {MIN_NAMED:.0%} name their entity, and names to recombine",
            got=f"{len(named_items(forget))} of {len(forget)} that name it",
            fix="Give never-taught items of your own",
        )
    return mirrored(forget, named)


def names_of_never_taught(
    forget: ItemSet, retain: ItemSet, config: AuditConfig
) -> tuple[Mapping[str, str], ...] | None:
    """An invented name for each forgotten entity, copy by copy; None where none can be invented."""
    return _names(forget, retain, _copies(forget, config), config.seed)


def _copies(forget: ItemSet, config: AuditConfig) -> int:
    """Copies of the forget set in the floor; fewer where it is large."""
    enough = max(1, MAX_INVENTED_ENTITIES // max(1, len(forget.entities)))
    return min(config.budget.never_taught_copies, enough)


@lru_cache(maxsize=4)  # needed by the checks before an audit and by the audit
def _names(
    forget: ItemSet, retain: ItemSet, copies: int, seed: int
) -> tuple[Mapping[str, str], ...] | None:
    named = named_items(forget)
    if len(named) < MIN_NAMED * len(forget):
        return None
    made: list[Item] = []
    names = []
    for copy in range(copies):
        avoid = ItemSet(tuple(replace(x, id=f"{x.id}-r") for x in retain) + tuple(made))
        rng = numpy_rng(seed, "never taught", str(copy))
        try:
            invented = invent_items(named, avoid, rng)
        except InputError:
            return None
        made += [replace(item, id=f"{item.id}-{copy}") for item in invented]
        names.append({old.entity: new.entity for old, new in zip(named, invented, strict=True)})
    return tuple(names)


def named_items(items: ItemSet) -> ItemSet:
    """The items of which every prompt names the entity."""
    return ItemSet(tuple(filter(names_its_entity, items)), items.name, items.format)


def mirrored(items: ItemSet, names: Sequence[Mapping[str, str]]) -> ItemSet:
    """Copies of the items that name their entity, about invented ones."""
    named = tuple(item for item in named_items(items) if item.entity in names[0])
    made = [
        replace(item, id=f"{item.id}-{copy}")
        for copy, of_copy in enumerate(names)
        for item in mirror_items(ItemSet(named), of_copy)
    ]
    return ItemSet(tuple(made), "never taught", "invented")


def permuted(items: ItemSet, config: AuditConfig) -> ItemSet:
    """Copies of the items with answers of others.

    Raises:
        InputError: all answers of a relation are equal.
    """
    made = [
        item
        for copy in range(_copies(items, config))
        for item in permute_answers(
            items, numpy_rng(config.seed, "permuted", str(copy)), f"answer of another, {copy + 1}"
        )
    ]
    return ItemSet(tuple(made), "answers of others", "permuted")


def without_constant_relations(items: ItemSet) -> tuple[ItemSet, int]:
    """The items whose relation has two different answers, or that have alternatives of their own.

    Returns:
        They, and the number of the others. A set of one relation stays as it is.
    """
    answers: dict[str, set[str]] = {}
    for item in items:
        answers.setdefault(item.relation, set()).add(normalize_text(item.answer))
    if len(answers) < 2:
        return items, 0
    kept = tuple(item for item in items if item.alternatives or len(answers[item.relation]) > 1)
    return ItemSet(kept, items.name, items.format), len(items) - len(kept)


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
