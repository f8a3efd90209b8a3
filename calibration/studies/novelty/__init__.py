"""Novelty scores compared on the same prompts."""
