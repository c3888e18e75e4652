"""The sets of an audit: what the original knows, never-taught items, and how both were chosen."""

from collections.abc import Mapping

from audits.asking.elicitation import Elicited, with_keys
from audits.core.config import AuditConfig
from audits.core.item_sets import (
    FloorKind,
    TextSets,
    check_known,
    mirrored,
    named_items,
    names_of_never_taught,
    permuted,
    within_budget,
    without_constant_relations,
)
from audits.core.scores import Part
from capture.data.items import ItemSet
from capture.scoring.scorers import SCORERS


def select_sets(
    elicited: Elicited,
    forget: ItemSet,
    retain: ItemSet,
    never_taught: ItemSet | None,
    config: AuditConfig,
) -> TextSets:
    """The sets of an audit: what the original knows, and never-taught items.

    Args:
        never_taught: Never-taught items, where they were given; all sets are as they were read.

    Raises:
        InputError: the original knows too little, or there is no floor.
    """
    given = {Part.FORGET: forget, Part.RETAIN: retain}
    read = {
        part: ItemSet(
            tuple(probe.item for probe in elicited.probes[part]), items.name, items.format
        )
        for part, items in given.items()
    }
    read[Part.FORGET], n_same = without_constant_relations(read[Part.FORGET])
    for part, items in given.items():
        check_known(part.value, read[part], items, config)
    read[Part.RETAIN] = within_budget(read[Part.RETAIN], config)
    asked = {part: _asked(elicited, part, items) for part, items in given.items()}
    kept = {item.id for item in read[Part.FORGET]}
    owners = {probe.id for probe in elicited.probes[Part.FORGET] if probe.item.id in kept}
    asked[Part.FORGET] = ItemSet(
        tuple(item for item in asked[Part.FORGET] if item.id in owners), forget.name, forget.format
    )
    asked[Part.RETAIN] = asked[Part.RETAIN].of_entities(read[Part.RETAIN].entities)
    if never_taught is not None:
        floor: FloorKind = "given"
        probes = elicited.probes[Part.NEVER_TAUGHT]
        unseen = ItemSet(
            tuple(probe.item for probe in probes), never_taught.name, never_taught.format
        )
        asked[Part.NEVER_TAUGHT] = with_keys(never_taught, elicited.keys[Part.NEVER_TAUGHT])
    elif names := names_of_never_taught(asked[Part.FORGET], asked[Part.RETAIN], config):
        floor, unseen = "invented", mirrored(read[Part.FORGET], names)
        asked[Part.NEVER_TAUGHT] = mirrored(asked[Part.FORGET], names)
    else:
        floor, unseen = "permuted", permuted(read[Part.FORGET], config)
        asked[Part.NEVER_TAUGHT] = permuted(asked[Part.FORGET], config)
    return TextSets(
        read[Part.FORGET],
        read[Part.RETAIN],
        unseen,
        {} if SCORERS[elicited.scorer].metrics == () else asked,
        elicited.asking,
        elicited.scorer,
        elicited.retain_scorer,
        floor,
        _notes(elicited, given, read, n_same, floor, config),
    )


_FLOORS: dict[FloorKind, str] = {
    "given": "The floor is the never-taught items that were given.",
    "invented": "The floor is the forgotten questions about invented entities.",
    "permuted": "The floor is the forgotten questions with the answers of other entities: no name "
    "could be invented for what they ask about.",
}


def _notes(
    elicited: Elicited,
    given: Mapping[Part, ItemSet],
    read: Mapping[Part, ItemSet],
    n_same: int,
    floor: FloorKind,
    config: AuditConfig,
) -> tuple[str, ...]:
    """How items were asked and scored, and why; empty where nothing was chosen."""
    notes = []
    left_out = 0
    if floor == "invented":
        left_out = len(read[Part.FORGET]) - len(named_items(read[Part.FORGET]))
    if not elicited.by_default:
        scorer = SCORERS[elicited.scorer]
        notes += [
            f"Items were asked {elicited.asking}.",
            f"Score: {scorer.label} ({elicited.why}).",
        ]
        if len(elicited.tried) > 1:
            ways = "; ".join(
                f"{each.asking}, {SCORERS[each.scorer].name}: {each.forget} of "
                f"{len(given[Part.FORGET])} forgotten and {each.retain} of "
                f"{each.retain_asked} retain items known"
                for each in elicited.tried
            )
            notes.append(f"Ways tried on the original: {ways}.")
        lost = [
            sum(elicited.known[part]) - len({probe.id for probe in elicited.probes[part]})
            for part in given
        ]
        if any(lost):
            notes.append(
                f"{lost[0]} forgotten and {lost[1]} retain items that the original knows are left "
                "out: it does not complete them word for word."
            )
    if elicited.prefixes:
        words = ", ".join(map(repr, elicited.prefixes))
        notes.append(f"Every answer of a relation begins with {words}, read as part of the prompt.")
    if config.system and not elicited.asking.chat:
        notes.append("The system prompt was not used: the items are not asked in a chat.")
    if floor == "permuted" or notes or left_out:
        notes.append(_FLOORS[floor])
    if n_same:
        notes.append(
            f"{n_same} forgotten items are left out: every entity has the same answer to their "
            "question, so it says nothing about one of them."
        )
    if left_out:
        notes.append(f"{left_out} forgotten questions do not name their entity and have none.")
    return tuple(notes)


def _asked(elicited: Elicited, part: Part, items: ItemSet) -> ItemSet:
    """The items that have a probe, as they are asked."""
    probed = {probe.id for probe in elicited.probes[part]}
    keyed = with_keys(items, elicited.keys[part])
    return ItemSet(tuple(item for item in keyed if item.id in probed), items.name, items.format)
