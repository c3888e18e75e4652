"""Weight files: which there are, what they say they hold, what of it a model takes."""
