"""Options that several commands share, and the parsing of comma-separated ones."""

from pathlib import Path
from typing import Annotated

import typer

from evidence.errors import InputError

OutOption = Annotated[Path, typer.Option("--out", help="Folder to write into.")]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Replace another audit in the folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
ReferenceOption = Annotated[
    list[str] | None, typer.Option(help="Model retrained without the forget set; may be repeated.")
]
NeverTaughtOption = Annotated[
    Path | None, typer.Option(help="Items about entities no model saw; invented by default.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Model that adapters were trained on; the one they name by default."),
]
ProfileOption = Annotated[str, typer.Option(help="quick, standard or full.")]
AxesOption = Annotated[
    str | None, typer.Option(help="Comma-separated axes; those of the profile by default.")
]

ColumnsOption = Annotated[
    str | None,
    typer.Option(help="Field to column of the files: prompt=text,answer=labels,entity=subject."),
]
ChatOption = Annotated[
    str, typer.Option(help="Ask questions in the chat template: auto, on or off.")
]
SystemOption = Annotated[
    str, typer.Option(help="System prompt of the chat; the template's own by default.")
]
ScorerOption = Annotated[
    str,
    typer.Option(
        help="What counts as giving an answer: exact, contains, rouge_l, options, passage, "
        "truth_ratio, or auto to choose by the items."
    ),
]


def split_names(text: str | None, option: str) -> list[str]:
    """The names in a comma-separated option; empty where the option is absent."""
    words = [word.strip() for word in (text or "").split(",")]
    if text is not None and not all(words):
        raise InputError(
            f"{option} has an empty name", expected="comma-separated names", got=repr(text)
        )
    return words if text is not None else []


def split_numbers(text: str, option: str) -> list[int]:
    """The whole numbers in a comma-separated option."""
    words = split_names(text, option)
    if not all(word.isascii() and word.isdecimal() and len(word) < 20 for word in words):
        raise InputError(
            f"{option} cannot be read", expected="numbers such as 0,1,2", got=repr(text)
        )
    return [int(word) for word in words]


def known_names(text: str | None, allowed: tuple[str, ...], option: str) -> set[str]:
    """The names in a comma-separated option, all of them ``allowed``."""
    names = set(split_names(text, option))
    unknown = sorted(names - set(allowed))
    if unknown:
        raise InputError(
            f"{option} has an unknown name",
            expected=f"some of {', '.join(allowed)}",
            got=repr(unknown[0]),
        )
    return names
