"""Training: the step, the pack of runs, evaluation."""
