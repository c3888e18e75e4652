"""What every refusal must be: one error, on one line, short, of harmless characters."""

import contextlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from evidence.errors import InputError
from exhume.cli import app as cli

LONGEST = 2600
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def check(message: str) -> str:
    """The message, if a terminal can show it and a person can read it."""
    assert not _HARMFUL.search(message), ascii(message)
    assert 10 < len(message) <= LONGEST
    return message


def refusal(call: Callable[[], Any]) -> str:
    """What is said of something that must be refused."""
    with pytest.raises(InputError) as caught:
        call()
    return check(str(caught.value))


def command(*arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, output, errors."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["exhume", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def refused(*arguments: object) -> str:
    """What the command line says of something that must be refused."""
    code, out, err = command(*arguments)
    assert code == 2, (out, err)
    assert "Traceback" not in out + err
    for line in (out + err).splitlines():
        assert not _HARMFUL.search(line), ascii(line)
    return err
