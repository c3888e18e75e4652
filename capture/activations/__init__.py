"""Activations at sites: batched capture and storage on disk."""

from evidence import moved

__getattr__ = moved.forward("capture.activations", "capture.activations.capture")
