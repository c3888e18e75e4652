"""Readers of untrusted file formats with size limits."""
