"""Formats of item files: one module a family, and their registry."""

from evidence import moved

__getattr__ = moved.forward("capture.data.formats", "capture.data.formats.registry")
