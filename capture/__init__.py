"""Getting at a network: safe loading, named places, hooks, facts and a store."""

from evidence import moved

moved.install()
