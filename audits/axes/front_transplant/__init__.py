"""Front-transplant axis: the original's first blocks in front of the candidate's others."""
