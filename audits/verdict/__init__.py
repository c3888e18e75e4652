"""The verdict: the rule, its claims, its calibration."""

from evidence import moved

__getattr__ = moved.forward("audits.verdict", "audits.verdict.rule")
