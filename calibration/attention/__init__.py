"""Attention heads: found, taken out, and scored by what the model does without them."""
