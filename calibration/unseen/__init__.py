"""Unseen sources: what probes and combinations of them are worth on prompts of a kind that they never saw."""
