"""Sampling, stopping and log-probabilities."""
