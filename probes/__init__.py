"""Batched linear probes: solvers, estimators, layer sweeps and geometry."""

from evidence import moved

moved.install()
