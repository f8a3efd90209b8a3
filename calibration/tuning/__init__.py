"""Tuning: an operator's own traffic gives the thresholds of a policy their numbers."""
