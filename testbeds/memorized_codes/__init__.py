"""The code-recall world of membership tests, and texts that models know by heart."""
