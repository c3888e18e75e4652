"""How well a model answers: answer scores, contrast, checks of forget and retain sets."""

from evidence import moved

__getattr__ = moved.forward("capture.scoring", "capture.scoring.answers")
