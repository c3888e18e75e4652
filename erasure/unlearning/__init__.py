"""Unlearning methods that train: objectives, tasks, the training loop."""
