"""Edits of values at sites, by row and position."""
