"""Two builds of one model: what of its safety moved between them."""
