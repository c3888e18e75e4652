"""The circuit axis: how much of the original's circuit is left."""
