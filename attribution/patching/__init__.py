"""Activation patching between models, steering, transplants, depth scores."""

from evidence import moved

__getattr__ = moved.forward("attribution.patching", "attribution.patching.cross_model")
