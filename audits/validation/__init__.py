"""Validation on models of known state; demo, selftest and doctor."""
