"""Statistics of an operator's own recorded traffic: what a threshold would have done, and what labels say of it."""
