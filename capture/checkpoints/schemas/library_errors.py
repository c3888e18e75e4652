"""Conversion of errors of third-party libraries into ``InputError``.

Libraries raise arbitrary exceptions for bad files. A panic in Rust code is not even an
``Exception``, and its message is written directly to the file descriptor of stderr.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from evidence.errors import ExhumeError, InputError


@contextmanager
def library_errors(
    failure: str, *, expected: str | None = None, fix: str | None = None
) -> Iterator[None]:
    """Convert any exception of a library in the block into an ``InputError``.

    Our own errors, ``KeyboardInterrupt`` and ``SystemExit`` pass through.

    Args:
        failure: The problem, with the name of the file, such as "x/config.json could not be
            read".
        expected: A description of valid input.
        fix: An instruction to the user.
    """
    try:
        yield
    except ExhumeError:
        raise
    except BaseException as error:
        name = type(error).__name__
        # PanicException of the tokenizers library derives from BaseException.
        if not isinstance(error, Exception) and name != "PanicException":
            raise
        sentence = " ".join(str(error).split()) or "no reason given"
        raise InputError(
            f"{failure} ({name}: {sentence})", expected=expected, fix=fix
        ) from error


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discard what native code writes to the file descriptor of standard error."""
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
