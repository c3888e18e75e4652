"""Batched linear probes: solvers, estimators, layer sweeps and geometry."""
