"""Concept vectors: fitting them, their quality, and tests against random concepts."""

from evidence import moved

__getattr__ = moved.forward("probes.concepts", "probes.concepts.vectors")
