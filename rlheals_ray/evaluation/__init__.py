"""Probes of checkpoints on fixed problems, and the statistics of their scores."""
