"""Tokenizers of checkpoints: validation of their files, pipeline steps and settings."""
