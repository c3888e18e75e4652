"""Scoring of answers: log-probabilities, exact match, contrast, validation of item sets."""

from evidence import moved

__getattr__ = moved.forward("capture.scoring", "capture.scoring.answers")
