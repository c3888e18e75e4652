"""Discovery of the parts of an unknown network, verified by a short forward pass."""
