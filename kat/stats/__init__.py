"""Intervals, paired and clustered tests, power and multiplicity on plain arrays; knows no torch and no model."""
