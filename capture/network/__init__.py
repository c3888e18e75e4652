"""Structure of a network: blocks, sites, hooks, neurons, output logits."""
