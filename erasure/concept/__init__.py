"""Concept erasers on activations, and their folding into weights."""
