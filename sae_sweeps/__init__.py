"""Sweeps of sparse autoencoders on a language model's activations, compared on one Pareto curve."""

__version__ = "0.1.0"
