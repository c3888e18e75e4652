"""The structure of a network: blocks, sites, hooks, output logits."""
