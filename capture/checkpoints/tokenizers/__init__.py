"""Tokenizers out of checkpoints: their files, steps and settings, checked before use."""
