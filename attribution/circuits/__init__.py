"""Circuits: the edge graph, edge attribution patching, ablation and divergence."""
