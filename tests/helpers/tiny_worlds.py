"""A code-recall world that is made in seconds."""

from testbeds.memorized_codes.config import CodesConfig

TINY = CodesConfig(
    memorised=8,
    clean=8,
    others=8,
    lead_ins=2,
    per_epoch=2,
    layers=2,
    width=48,
    heads=4,
    epochs=150,
    batch_size=48,
    lr=1e-2,
    enough=0.9,
)
