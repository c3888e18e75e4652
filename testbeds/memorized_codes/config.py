"""Sizes of the code-recall world."""

from dataclasses import dataclass, replace

from erasure.unlearning.training.loop import check_values
from testbeds.worlds.code_text import LEAD_INS


@dataclass(frozen=True)
class CodesConfig:
    """Size of the world and of its models.

    Attributes:
        memorised: Prefixes with a fixed code.
        clean: Prefixes with a random code in every epoch.
        others: A second pool like ``clean``, for controls; the paper's toy has none.
        lead_ins: Number of the 24 lead-ins to train on; the others are contexts that no model saw.
        per_epoch: Lead-ins that a prefix is shown with in an epoch, drawn each time.
        layers: Transformer blocks.
        width: Width of the residual stream.
        heads: Attention heads.
        epochs: Most epochs of training.
        batch_size: Rows a step.
        lr: Peak learning rate.
        enough: Training ends when every code has at least this probability after every lead-in
            trained on.
    """

    memorised: int = 9
    clean: int = 9
    others: int = 0
    lead_ins: int = 10
    per_epoch: int = 10
    layers: int = 4
    width: int = 128
    heads: int = 8
    epochs: int = 600
    batch_size: int = 60
    lr: float = 1e-3
    enough: float = 0.99

    def __post_init__(self) -> None:
        checks = {
            "memorised": (self.memorised >= 2, "2 or more", self.memorised),
            "clean": (self.clean >= 2, "2 or more", self.clean),
            "others": (self.others >= 0, "0 or more", self.others),
            "lead_ins": (
                1 <= self.lead_ins <= len(LEAD_INS),
                f"1 to {len(LEAD_INS)}",
                self.lead_ins,
            ),
            "per_epoch": (
                1 <= self.per_epoch <= self.lead_ins,
                f"1 to {self.lead_ins}, the lead-ins trained on",
                self.per_epoch,
            ),
            "heads": (self.width % self.heads == 0, "a divisor of width", self.heads),
            "epochs": (self.epochs >= 1, "1 or more", self.epochs),
            "batch_size": (self.batch_size >= 1, "1 or more", self.batch_size),
            "lr": (self.lr > 0, "a number > 0", self.lr),
            "enough": (0 < self.enough < 1, "between 0 and 1", self.enough),
        }
        check_values(checks)

    @property
    def sizes(self) -> dict[str, int]:
        """Prefixes by pool."""
        return {"memorised": self.memorised, "clean": self.clean, "others": self.others}


PUBLISHED = CodesConfig()
MEDIUM = CodesConfig(memorised=40, clean=40, others=40, lead_ins=4, per_epoch=2, epochs=1200)
LARGE = CodesConfig(memorised=200, clean=200, lead_ins=4, per_epoch=2, epochs=2000, batch_size=200)
SMALL = CodesConfig(
    memorised=20,
    clean=20,
    others=20,
    lead_ins=3,
    per_epoch=3,
    layers=2,
    width=64,
    heads=4,
    epochs=300,
    lr=4e-3,
    enough=0.9,
)
# As many keys as MEDIUM on the small network. An epoch costs about 6 x parameters x
# tokens: 7 GFLOP here, 34 at the paper's width and 113 for LARGE.
FORTY = replace(SMALL, memorised=40, clean=40, others=40, epochs=400)
# Five times FORTY's keys on the same network: 20 GFLOP an epoch, a second on one CPU thread. A GPU
# takes longer to launch a step than to compute it, so batches are as large as training allows;
# smaller ones occasionally forget a key. There are too few phrases for a second clean pool.
TWO_HUNDRED = replace(
    FORTY, memorised=200, clean=200, others=0, batch_size=600, lr=1e-3, epochs=3000
)
SIZES = {
    "published": PUBLISHED,
    "medium": MEDIUM,
    "large": LARGE,
    "small": SMALL,
    "forty": FORTY,
    "two_hundred": TWO_HUNDRED,
}
