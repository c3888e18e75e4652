"""Checkpoints: opening them, reading weights safely, measuring how far they moved."""
