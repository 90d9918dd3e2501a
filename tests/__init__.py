"""Tests, in a package: another `tests` that is installed somewhere would hide them else."""
