"""Edits of image classifiers that read the picture differently."""
