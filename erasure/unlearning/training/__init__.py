"""Unlearning by training: settings, losses, batches, and the loop."""
