"""Linear probes with scikit-learn's interface, and the batteries of stronger classifiers."""
