"""Decodability: is the answer linearly readable from hidden states?"""
