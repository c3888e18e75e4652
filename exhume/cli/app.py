"""The command line: arguments in, exit codes out. Every command has a Python equivalent."""

from importlib.metadata import version
from typing import Annotated

import typer

from evidence.machine.memory import keep_freed_memory
from exhume.cli.audit_commands import audit, compare, plan, report, validate
from exhume.cli.ending import run_and_exit
from exhume.cli.pga_command import pga
from exhume.cli.setup_commands import demo, doctor, fetch
from exhume.cli.zoo_commands import selftest, zoo_build

app = typer.Typer(
    name="exhume",
    help="Was the knowledge deleted, or only suppressed?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
zoo = typer.Typer(help="Models of known state.", no_args_is_help=True)
zoo.command("build")(zoo_build)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"exhume {version('exhume')}")
        raise typer.Exit


@app.callback()
def exhume(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Was the knowledge deleted, or only suppressed?"""


# Listed by ``exhume --help`` in the order of use.
for _command in (demo, validate, plan, audit, report, compare, selftest, fetch, doctor, pga):
    app.command()(_command)
app.add_typer(zoo, name="zoo")


def main() -> None:
    """Entry point: user errors end in one line and exit code 2."""
    keep_freed_memory()
    run_and_exit(app)
