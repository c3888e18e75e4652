"""One net around foreign libraries: what they raise becomes one clear error.

They meet bad files with errors of any kind, down to a panic of Rust code, which is no
``Exception`` at all and prints where it happened past everything Python can catch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from evidence.errors import ExhumeError, InputError


@contextmanager
def library_errors(
    failure: str, *, expected: str | None = None, fix: str | None = None
) -> Iterator[None]:
    """Turn whatever a library raises in the block into an ``InputError``.

    Our own errors pass through, as do interrupts and a wish to exit.

    Args:
        failure: What could not be done, with the name of the file, such as
            "x/config.json could not be read".
        expected: What would have been right.
        fix: What to do about it.
    """
    try:
        yield
    except ExhumeError:
        raise
    except BaseException as error:
        name = type(error).__name__
        # PanicException of the tokenizer library derives from BaseException.
        if not isinstance(error, Exception) and name != "PanicException":
            raise
        sentence = " ".join(str(error).split()) or "no reason given"
        raise InputError(
            f"{failure} ({name}: {sentence})", expected=expected, fix=fix
        ) from error


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what native code writes to standard error off the screen, for a while.

    Python's own ``sys.stderr`` cannot hold it back: Rust writes to the descriptor.
    """
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed, so nothing can be written to it
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
