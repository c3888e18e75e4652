"""Atomic writes, bounded reads of untrusted files, locks, and safe deletion."""
