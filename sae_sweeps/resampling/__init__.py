"""Resampling: new weights for latents that died. One file per variant."""
