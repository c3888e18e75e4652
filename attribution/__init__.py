"""Which parts of a network an answer runs through."""
