"""Edits of weights in closed form or by few gradients; quantization."""
