"""Worlds: data, tokenizers and models with known facts."""
