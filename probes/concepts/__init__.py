"""Concept vectors: directions, quality, tests."""

from evidence import moved

__getattr__ = moved.forward("probes.concepts", "probes.concepts.vectors")
