"""Recipes: a graph of stages, each one `kat` process, skipped where nothing it depends on has changed."""
