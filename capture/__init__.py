"""Access to models and data: safe loading, sites, hooks, activations, items, scoring."""

from evidence import moved

moved.install()
