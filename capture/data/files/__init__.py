"""File formats that nobody vouches for, read within limits."""
