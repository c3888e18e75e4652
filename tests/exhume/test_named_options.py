"""Every option and argument that a message names exists."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import typer.main

import exhume
from exhume.cli.app import app

ROOT = Path(__file__).parents[2]
PACKAGES = (
    *("evidence", "capture", "probes", "attribution", "erasure"),
    *("testbeds", "audits", "experiments", "exhume"),
)


def messages():
    """Strings of calls of InputError, with the place of each."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("InputError"):
                    parts = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
                    for part in parts:
                        text = part.value
                        if isinstance(text, str) and not text.startswith("Run `pip "):
                            yield f"{path.relative_to(ROOT)}:{part.lineno}", text


def named(pattern):
    return {(place, name) for place, text in messages() for name in re.findall(pattern, text)}


def options():
    group: Any = typer.main.get_command(app)
    return {
        option
        for command in [group, *group.commands.values()]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def test_every_option_named_in_an_error_exists():
    found = named(r"(?<![\w-])--[a-z][a-z-]*")
    assert {name for _, name in found} >= {"--base", "--axes", "--out"}
    known = options()
    assert [each for each in sorted(found) if each[1] not in known] == []


def test_every_argument_named_for_python_exists():
    arguments = {
        name
        for function in (exhume.audit, exhume.plan, exhume.check_items, exhume.open_checkpoint)
        for name in inspect.signature(function).parameters
    }
    found = named(r"\b(\w+)= in Python")
    assert {name for _, name in found} == {"base", "tokenizer"}
    assert {name for _, name in found} <= arguments


def test_the_base_of_adapters_is_an_option_where_models_are_read():
    group: Any = typer.main.get_command(app)
    for name in ("audit", "plan", "validate"):
        assert any("--base" in each.opts for each in group.commands[name].params), name
    for function in (exhume.audit, exhume.plan, exhume.check_items, exhume.open_checkpoint):
        assert "base" in inspect.signature(function).parameters
