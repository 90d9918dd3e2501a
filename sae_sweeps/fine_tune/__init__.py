"""Fine-tuning: a last phase with another loss. One file per variant."""
