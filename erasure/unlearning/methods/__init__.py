"""Unlearning methods by family."""
