"""Solvers compiled by numba; ``dispatch`` decides when they apply."""
