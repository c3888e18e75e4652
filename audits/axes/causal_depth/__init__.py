"""Causal depth: do states of the candidate carry the answer into the original?"""
