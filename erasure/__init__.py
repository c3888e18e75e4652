"""Removing knowledge: unlearning methods as baselines, and exact linear erasure."""
