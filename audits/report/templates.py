"""Jinja templates of the offline pages, and their style sheet.

Page contents are untrusted: strings are cleaned (``formatting.clean``) and escaped by the
template engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template
from markupsafe import Markup

from audits.report import formatting as write
from evidence.errors import InputError


def template(name: str) -> Template:
    """A template of this package, e.g. ``report.html.j2``."""
    return _environment().get_template(name)


def style_sheet() -> Markup:
    """The style sheet, to be embedded in a page."""
    return Markup(_resource("report.css"))


@contextmanager
def rendering_errors(what: str) -> Iterator[None]:
    """Turn any failure to render into one ``InputError``.

    Args:
        what: What is rendered, such as "audit.json".

    Raises:
        InputError: the document fits its schema, but cannot be rendered.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{what} cannot be rendered ({type(error).__name__}: {error})",
            expected="a document written by an audit",
            fix="Run the audit again; if it was not altered, please report a bug",
        ) from error


def _resource(name: str) -> str:
    return files("audits.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=write.clean,
    )
    environment.filters |= {
        "small": write.small,
        "seconds": write.seconds,
        "share": write.share,
        "memory": write.memory,
        "p": write.p_text,
        "words": write.describe_site,
        "at": write.at_site,
        "flat": write.flatten_settings,
    }
    return environment
