"""What this machine and others offer: files, signals, SLURM, the Hugging Face Hub."""
