"""Newton's method with conjugate gradients or direct solves, in row or parameter space."""
