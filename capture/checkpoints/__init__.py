"""Checkpoints: opening, safe reading of weights, comparison of weights."""
