"""Activation patching between models, steering and the Unlearning Depth Score."""

from evidence import moved

__getattr__ = moved.forward("attribution.patching", "attribution.patching.cross_model")
