"""Architectures: how activations are encoded, decoded and penalised. One file per variant."""
