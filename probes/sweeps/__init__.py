"""Probes at many sites: sweeps, nested penalties, description length, membership."""
