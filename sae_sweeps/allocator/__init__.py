"""Allocators: which token-latent pairs are active. One file per variant."""
