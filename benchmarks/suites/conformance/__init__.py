"""Public functions on every kind of live model."""
