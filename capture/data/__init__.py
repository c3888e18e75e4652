"""Data: items, questions, images, token sequences, and readers of their files."""
