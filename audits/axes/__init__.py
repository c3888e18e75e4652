"""The axes of evidence."""
