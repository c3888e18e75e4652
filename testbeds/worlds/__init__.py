"""Worlds: facts, images or codes, models that learned them, and counterfactual retrains."""
