"""Where in a network an answer is computed, found by intervening on it."""

from evidence import moved

moved.install()
