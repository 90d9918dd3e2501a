"""Streams: activation batches in a fixed order."""
