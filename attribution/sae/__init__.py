"""Sparse autoencoders: loading, training, latent edits and feature ranking."""

from evidence import moved

__getattr__ = moved.forward("attribution.sae", "attribution.sae.autoencoder")
