"""Cross-validation folds, metrics and label permutations."""
