"""Saving, loading and going on."""
