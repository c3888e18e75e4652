"""Side effects of unlearning: perplexity, and memorization of other texts instead."""

from dataclasses import dataclass

MAX_PERPLEXITY_RATIO = 1.05
ROLE_SWAP_SHARE = 0.5


@dataclass(frozen=True)
class Utility:
    """Utility before and after unlearning.

    Attributes:
        perplexity: Of texts that no training step has seen, before and after.
        memorised: Mean log-probability a token of the memorized texts, in nats, likewise.
        clean: The same for the clean texts that the eraser was trained on.
    """

    perplexity: tuple[float, float]
    memorised: tuple[float, float]
    clean: tuple[float, float]

    @property
    def ratio(self) -> float:
        """Perplexity after over before."""
        return self.perplexity[1] / self.perplexity[0]

    @property
    def role_swap(self) -> bool:
        """Whether the clean texts moved at least half-way to the memorized texts' level.

        The two classes have then exchanged roles, and a probe "below chance" detects membership
        as well as before.
        """
        distance = self.memorised[0] - self.clean[0]
        return distance > 0 and self.clean[1] - self.clean[0] >= ROLE_SWAP_SHARE * distance

    @property
    def kept(self) -> bool:
        """Perplexity within 1.05 times, and no role swap."""
        return self.ratio <= MAX_PERPLEXITY_RATIO and not self.role_swap
