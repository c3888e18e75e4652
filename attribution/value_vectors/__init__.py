"""MLP value vectors that encode an answer, and their survival in a candidate."""
