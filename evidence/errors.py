"""The errors a user can meet, each one sentence for each of four questions."""


class ExhumeError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is the command line's."""

    exit_code = 1


class InputError(ExhumeError):
    """Input or usage that cannot be worked with (exit code 2).

    Args:
        wrong: What was wrong, a sentence without its full stop.
        expected: What would have been right.
        got: What came instead.
        fix: What to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        wrong: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        fix: str | None = None,
    ):
        self.wrong, self.expected, self.got, self.fix = wrong, expected, got, fix
        parts = [wrong.rstrip(".")]
        if expected is not None and got is not None:
            parts.append(f"Expected {expected}; got {got}")
        elif expected is not None:
            parts.append(f"Expected {expected}")
        elif got is not None:
            parts.append(f"Got {got}")
        if fix is not None:
            parts.append(fix.rstrip("."))
        super().__init__(". ".join(parts) + ".")


class NotFittedError(ExhumeError):
    """A result was asked of an estimator that has not been fitted."""

    def __init__(self, estimator: object, attribute: str):
        name = type(estimator).__name__
        super().__init__(f"{name} has no {attribute}: call fit first.")
