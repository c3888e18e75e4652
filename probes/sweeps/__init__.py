"""Probes over many sites: sweeps, nested penalties, description length, membership tests."""
