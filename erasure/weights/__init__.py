"""Weight edits in closed form or from few gradients, folding of erasers, quantization."""
