"""Schedules, groups, clipping, and what one step moves."""
