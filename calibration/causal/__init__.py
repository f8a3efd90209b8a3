"""Proof by cause: what happens to the model's refusals when a part of it is changed."""
