"""Getting at a network: safe loading, named places, hooks, facts and a store."""
