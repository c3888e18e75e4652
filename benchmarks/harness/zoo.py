"""Models whose state is known by construction: which may be judged, and their audits."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audits.run.api import Audit, audit
from benchmarks.harness.runner import list_option
from capture.checkpoints.cache import cache_root
from evidence.errors import InputError
from testbeds.zoo.build import Specimen, build_zoo, split

BY_CONSTRUCTION = "state known by construction"


def zoo_options(parser: argparse.ArgumentParser, **defaults: Sequence[Any]) -> None:
    """Options that say which models of the zoo: some of seeds, families and kinds."""
    for name, values in defaults.items():
        kind = int if name == "seeds" else str
        shown = "all of the part" if not values else ",".join(map(str, values))
        parser.add_argument(
            f"--{name}", type=list_option(kind), default=list(values), help=f"default: {shown}"
        )
    parser.add_argument("--root", type=Path, default=cache_root() / "zoo", help="of the zoo")


def check_part(part: str, world: str = "bios", **chosen: Any) -> None:
    """Refuse what lies outside a part of the zoo: thresholds were set on the other.

    Args:
        part: "tuning" or "held_out".
        world: Of the zoo.
        chosen: Some of ``seeds``, ``families`` and ``kinds``.

    Raises:
        InputError: something is not in the part.
    """
    whole = split(world)[part]
    outside = [each for name in chosen for each in chosen[name] if each not in whole[name]]
    if outside:
        raise InputError(
            f"not in the {part} part of the zoo: {', '.join(map(str, outside))}",
            fix="Choose among those of the part",
        )


def specimens(args: argparse.Namespace, part: str, kinds: Sequence[str]) -> Iterator[Specimen]:
    """Models of a part of the zoo, made or found, kind by kind."""
    check_part(part, seeds=args.seeds)
    for kind in kinds:
        yield from build_zoo(args.root, seeds=args.seeds, families=args.families, only=[kind])


@dataclass(frozen=True)
class KnownModel:
    """A model of known state, with what an audit of it needs.

    Attributes:
        name: Of the model, and of its audits' folders.
        model: The candidate.
        state: Its true state; None where that has to be graded.
        original: Before unlearning.
        forget: Items, or images.
        retain: Likewise.
        references: Models retrained without the forget set.
        never_taught: Items that no model saw; invented where None.
    """

    name: str
    model: Path
    state: str | None
    original: Any
    forget: Any
    retain: Any
    references: tuple[Path, ...] = ()
    never_taught: Any = None


def known_model(made: Specimen) -> KnownModel:
    """A model of the zoo with the reference of its world."""
    world = made.world
    sets = (world.original, world.forget, world.retain)
    return KnownModel(made.name, made.model, made.state, *sets, (world.root / "reference",))


def audited(known: KnownModel, floor: str, place: Path, **settings: Any) -> Audit:
    """The audit of a model with one floor, made or found in ``place``.

    Args:
        known: The model.
        floor: "reference" or "never_taught".
        place: Where audits are kept.
        settings: Of ``audit``.
    """
    return audit(
        known.original,
        known.model,
        known.forget,
        known.retain,
        place / f"{known.name}-{floor}",
        reference=known.references if floor == "reference" else (),
        never_taught=known.never_taught,
        **settings,
    )
