"""Weight files: discovery, validation of headers, matching with a model's parameters."""
