"""Small worlds and models whose true state is known by construction."""
