"""The solvers that numba compiles; `dispatch` decides when they serve."""
