"""Fits that ended without a certificate: kept, named and counted.

A fit that is not certified to be at its optimum is no reason to throw the others away,
nor itself: its probe is the best that was found. Every result names such fits in
``uncertified``, and a call that fits for its caller warns of them once.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

from sklearn.exceptions import ConvergenceWarning


class UncertifiedWarning(ConvergenceWarning):
    """Some fits are not certified to be at their optimum; their results are kept."""


@dataclass(frozen=True)
class UncertifiedFit:
    """A fit that is not certified to be at its optimum.

    Attributes:
        certificate: Distance to the optimum, relative, as far as it is known.
        fold: Its fold, None where there are no folds.
        label: Its label vector among those fitted together.
        site: Where, in results over sites or views.
        name: Of its label vector, such as "permutation 3", where it has one.
        inner: Which of the fits it is that chose a penalty inside the fold, if one.
    """

    certificate: float
    fold: int | None
    label: int = 0
    site: str = ""
    name: str = ""
    inner: str = ""

    def __str__(self) -> str:
        name = self.name or f"label vector {self.label}"
        fold = "" if self.fold is None else f"fold {self.fold}"
        parts = [self.site, name, fold, self.inner]
        return ", ".join(part for part in parts if part)


def describe(fits: Sequence[UncertifiedFit]) -> str:
    """How many fits, which (three at most), and the worst certificate; "" for none."""
    if not fits:
        return ""
    named = "; ".join(str(fit) for fit in fits[:3])
    more = f"; and {len(fits) - 3} more" if len(fits) > 3 else ""
    worst = max(fit.certificate for fit in fits)
    far = f"within {worst:.0e} of it" if isfinite(worst) else "how far is not known"
    fits = "1 fit is" if len(fits) == 1 else f"{len(fits)} fits are"
    return f"{fits} not certified to be at the optimum ({far}), and kept: {named}{more}"


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """No warnings from calls inside, whose fits the caller names with its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertifiedWarning)
        yield


def warn_uncertified(fits: Sequence[UncertifiedFit]) -> None:
    """Warn of them once; for functions that fit for their caller."""
    if fits:
        advice = "lower C, standardise, or look for rows that are nearly equal"
        text = f"{describe(fits)}; {advice}"
        warnings.warn(text, UncertifiedWarning, stacklevel=3)
