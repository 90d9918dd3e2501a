"""Figures of a finished SAE beside those that every run has. One file per variant."""
