"""Unlearning methods that train: objectives, loss terms and the training loop."""
