"""Small worlds and models whose true state is known by construction."""

from evidence import moved

moved.install()
