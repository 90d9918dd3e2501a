"""Target models: where activations come from. One file per variant."""
