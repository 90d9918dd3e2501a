"""Tracking: where runs are mirrored. One file per variant."""
