"""What unlearning cost: perplexity, and whether other texts were learned instead."""

from dataclasses import dataclass

MAX_PERPLEXITY_RATIO = 1.05
ROLE_SWAP_SHARE = 0.5


@dataclass(frozen=True)
class Utility:
    """Before and after, in nats a token.

    Attributes:
        perplexity: Of texts no training step has seen, before and after.
        memorised: Mean log-probability a token of the memorised texts, likewise.
        clean: The same of the very clean texts that the eraser trained on.
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
        """Whether the clean texts went half the way to how the memorised ones were.

        Then the two classes have changed roles, and a probe "below chance" reads
        membership as well as ever.
        """
        way = self.memorised[0] - self.clean[0]
        return way > 0 and self.clean[1] - self.clean[0] >= ROLE_SWAP_SHARE * way

    @property
    def kept(self) -> bool:
        """Perplexity within 1.05 times, and no role swap."""
        return self.ratio <= MAX_PERPLEXITY_RATIO and not self.role_swap
