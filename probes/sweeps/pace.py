"""How long a sweep takes, said before it has taken it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from evidence.progress import Display

MAX_UNSAID_SECONDS = 120.0
"""Longest time that a sweep may take without a warning beforehand."""
MAX_NOTE_SECONDS = 10.0
"""Time from which the estimate is noted in a log."""
PILOTS, MAX_PILOT_SECONDS = (4, 20), 20.0
"""Label vectors that are fitted again: few, then more, which share what a site costs once."""


class LongRunWarning(UserWarning):
    """The call takes more than two minutes."""


@dataclass
class Pace:
    """Estimates the time of a sweep from its first fits.

    Attributes:
        n_vectors: Label vectors of the whole sweep, at all sites.
        progress: Where a short estimate is noted too.
        is_known: Whether the estimate was made, or nothing was left to estimate.
    """

    n_vectors: int
    progress: Display
    is_known: bool = False

    def estimate(self, seconds_each: float, n_done: int, measure: Callable[[int], int]) -> None:
        """Say how long the rest takes, and warn if that is more than two minutes.

        Args:
            seconds_each: Time of a label vector so far, loading and compilation included.
            n_done: Label vectors done.
            measure: Fits so many label vectors again, which is compiled by now, and returns how
                many it had.
        """
        if self.is_known:
            return
        n_left = self.n_vectors - n_done
        for count in PILOTS:
            too_long = count > PILOTS[0] and count * seconds_each > MAX_PILOT_SECONDS
            if n_left * seconds_each <= MAX_UNSAID_SECONDS or too_long:
                break
            begun = perf_counter()
            n_measured = measure(count)
            seconds_each = (perf_counter() - begun) / n_measured
        self.say(seconds_each, n_left, stacklevel=5)

    def say(self, seconds_each: float, n_left: int, stacklevel: int = 4) -> None:
        """Say how long ``n_left`` label vectors take."""
        self.is_known = True
        seconds = n_left * seconds_each
        text = f"probing takes about {duration(seconds)} or less: {n_left} label vectors at "
        text += f"{seconds_each:.2g} s each"
        if seconds > MAX_NOTE_SECONDS:
            self.progress.note(text)
        if seconds > MAX_UNSAID_SECONDS:
            advice = "Fewer permutations or fewer sites take less"
            warnings.warn(f"{text}. {advice}", LongRunWarning, stacklevel=stacklevel)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words, rounded up."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = -(-seconds // 60)
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
