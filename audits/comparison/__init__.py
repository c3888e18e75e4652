"""Finished audits side by side."""
