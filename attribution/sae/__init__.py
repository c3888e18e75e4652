"""Sparse autoencoders: loading, training, latents, features."""

from evidence import moved

__getattr__ = moved.forward("attribution.sae", "attribution.sae.autoencoder")
