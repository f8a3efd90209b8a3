"""Directions: of refusal and of harmfulness, as a difference of means."""
