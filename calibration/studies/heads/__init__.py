"""Attention heads, scored by what the model does without them."""
