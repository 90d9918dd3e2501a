"""Checks of what runs on GPUs."""
