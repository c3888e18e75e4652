"""Newton steps by conjugate gradients or Cholesky factors, in row or parameter space."""
