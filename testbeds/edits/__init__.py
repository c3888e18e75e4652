"""Edits with a known true state: retrains, suppressions, damage."""

from evidence import moved

__getattr__ = moved.forward("testbeds.edits", "testbeds.edits.workbench")
