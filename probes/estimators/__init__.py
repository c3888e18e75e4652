"""Linear probes with scikit-learn's contract."""
