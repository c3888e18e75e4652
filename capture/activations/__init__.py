"""Activations at sites: capturing them in batches and keeping them on disk."""

from evidence import moved

__getattr__ = moved.forward("capture.activations", "capture.activations.capture")
