"""Prompts, letter extraction, grading and aggregation."""
