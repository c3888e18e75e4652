"""Where a network computes an answer, by intervention: circuits, patching, autoencoders."""

from evidence import moved

moved.install()
