"""Data: token rows, split by document. One file per variant."""
