"""Batched linear probes: solvers, estimators, layer sweeps, concept vectors and geometry."""

from evidence import moved

moved.install()
