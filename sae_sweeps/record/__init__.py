"""What is on record: runs, plans, manifests, states and checkpoints on disk."""
