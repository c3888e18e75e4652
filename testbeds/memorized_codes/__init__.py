"""The code-recall world of the PGA study."""
