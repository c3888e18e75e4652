"""Edits of what reads the question, and what the front that they change held."""
