"""Remove knowledge: unlearning methods, weight edits and linear concept erasure."""

from evidence import moved

moved.install()
