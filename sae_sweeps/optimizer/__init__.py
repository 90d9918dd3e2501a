"""Optimisers: how a gradient becomes a step. One file per variant."""
