"""Concept erasure: LEACE and other maps that remove a concept from activations."""
