"""Auxiliary losses: what revives dead latents. One file per variant."""
