"""Concept vectors: the forgotten concept inside the candidate."""
