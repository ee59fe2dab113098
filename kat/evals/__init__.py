"""Suites, the runner that puts a model through one, and the files that hold what came out."""
