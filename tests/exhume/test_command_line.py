"""The command line as a newcomer meets it: version, and the order of commands."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from exhume.cli.app import app


def test_version_is_the_installed_distributions():
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output == f"exhume {version('exhume')}\n"


def test_commands_are_listed_in_the_order_of_use():
    shown = CliRunner().invoke(app, ["--help"]).output
    words = ["demo", "validate", "plan", "audit", "report", "compare", "selftest"]
    words += ["fetch", "doctor", "pga", "zoo"]
    # A command stands first in its row, behind the frame.
    listed = [line.split()[1] for line in shown.splitlines() if line[:3] == "│ " + line[2:3]]
    assert [word for word in listed if word in words] == words


@pytest.mark.parametrize("command", ["audit", "plan", "demo", "pga", "compare"])
def test_every_command_explains_itself(command):
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
