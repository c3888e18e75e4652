"""MLP value vectors of an answer, and what became of them."""
