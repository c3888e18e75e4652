"""A digits world small enough for tests: enough to learn, few steps."""

from testbeds.worlds.digits import DigitsConfig

TINY_DIGITS = DigitsConfig(layers=2, width=48, steps=150, lr=4e-3, weight_decay=0.1, family="cnn")
KINDS = ("head_only", "logit_mask", "late_rotation", "class_direction", "twin")
