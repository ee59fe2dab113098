"""Finds tests that cannot fail."""
