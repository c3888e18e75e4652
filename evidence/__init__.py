"""Results, statistics, errors, seeds, progress and safe file access."""

from evidence import moved

moved.install()
