"""Guards around third-party libraries: errors become ``InputError``, output and network are off.

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
        raise InputError(f"{failure} ({name}: {sentence})", expected=expected, fix=fix) from error


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


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Disable the progress bars and messages of transformers."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def offline_hub() -> Iterator[None]:
    """Disable the network access of the Hugging Face hub client."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
