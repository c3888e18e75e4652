"""Probe-geometry alignment: erasers of membership under two protocols."""
