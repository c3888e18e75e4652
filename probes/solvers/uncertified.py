"""Fits that ended without a certificate.

Such a fit is kept, since its probe is the best one found, and does not stop the others. Every
result lists these fits in ``uncertified``, and a call that fits on behalf of its caller warns of
them once.
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
        certificate: Relative distance to the optimum, infinite if unknown.
        fold: Its fold, None without folds.
        label: Index of its label vector.
        site: Site or view, in results over several.
        name: Name of its label vector, such as "permutation 3".
        inner: Inner fold or bootstrap draw, for fits that are not final.
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
    """Count of the fits, up to three names, and the worst certificate; "" for none."""
    if not fits:
        return ""
    names = "; ".join(str(fit) for fit in fits[:3])
    more = f"; and {len(fits) - 3} more" if len(fits) > 3 else ""
    worst = max(fit.certificate for fit in fits)
    distance = f"within {worst:.0e} of it" if isfinite(worst) else "how far is not known"
    count = "1 fit is" if len(fits) == 1 else f"{len(fits)} fits are"
    return f"{count} not certified to be at the optimum ({distance}), and kept: {names}{more}"


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress ``UncertifiedWarning`` for calls inside, whose fits the caller reports itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncertifiedWarning)
        yield


def warn_uncertified(fits: Sequence[UncertifiedFit]) -> None:
    """Warn once of uncertified fits."""
    if fits:
        advice = "lower C, standardize, or look for rows that are nearly equal"
        text = f"{describe(fits)}; {advice}"
        warnings.warn(text, UncertifiedWarning, stacklevel=3)
