"""The objective of logistic regression: loss, shared factor, a batch of problems."""
