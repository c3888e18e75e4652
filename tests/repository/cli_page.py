"""docs/reference/cli.md from the command line: ``python -m tests.repository.cli_page``.

The page is committed, so that it can be read in the repository. A test compares it with the
commands as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from exhume.cli.app import app

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"
HEAD = """# Command line

Written by `python -m tests.repository.cli_page` from `exhume --help`; edits are lost.

Commands are listed in the order of use; each names the Python function that does the same. What
they return to a shell is in [exit codes](../guide/exit-codes.md).
"""
TWINS = {
    "exhume demo": "audits.validation.demo.run_demo",
    "exhume validate": "exhume.check_items",
    "exhume plan": "exhume.plan",
    "exhume audit": "exhume.audit",
    "exhume report": "audits.report.page.write_report",
    "exhume compare": "exhume.compare",
    "exhume selftest": "audits.validation.selftest.selftest",
    "exhume fetch": "exhume.fetch_smollm2",
    "exhume doctor": "audits.validation.doctor.run_checks",
    "exhume pga": "experiments.pga.run.pga",
    "exhume zoo build": "exhume.build_zoo",
}
"""The Python function behind each command."""


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    return HEAD + "".join(_section(name, each) for name, each in _commands(root))


def _commands(group: Any, above: str = "exhume") -> Iterator[tuple[str, Any]]:
    """Name and command of everything that can be run, in the order of the help."""
    for name, command in group.commands.items():
        whole = f"{above} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, whole)
        else:
            yield whole, command


def _section(name: str, command: Any) -> str:
    usage = " ".join([name, *filter(None, map(_usage, command.params))])
    text = f"\n## {name}\n\n{command.help}\n\n```sh\n{usage}\n```\n"
    if command.params:
        text += "\n| option | default | meaning |\n|---|---|---|\n"
        text += "".join(map(_row, command.params))
    return f"{text}\nIn Python: `{TWINS[name]}`.\n"


def _usage(parameter: Any) -> str:
    """What a call needs; options that may be left out are in the table."""
    if not parameter.required:
        return ""
    name = _name(parameter)
    if name.startswith("-"):
        return f"{name} {parameter.name.upper()}"
    return f"{name}..." if parameter.nargs == -1 else name


def _row(parameter: Any) -> str:
    absent = parameter.default is None or parameter.default is False
    default = "" if absent else f"`{parameter.default}`"
    shown = "required" if parameter.required else default
    more = " May be repeated." if parameter.multiple and "repeated" not in parameter.help else ""
    text = (parameter.help + more).replace("|", "\\|")
    return f"| `{_name(parameter)}` | {shown} | {text} |\n"


def _name(parameter: Any) -> str:
    longest = max(parameter.opts, key=len)
    return longest if longest.startswith("-") else longest.upper()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
