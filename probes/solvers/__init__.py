"""Logistic regression: every fold at its certified optimum; see README.md."""
