"""Benchmarks: each script runs both sides in one go and prints the ratio; ``--json`` prints the figures alone."""
