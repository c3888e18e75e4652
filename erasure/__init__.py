"""Removing knowledge: unlearning methods as baselines, and exact linear erasure."""

from evidence import moved

moved.install()
