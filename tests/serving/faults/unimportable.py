"""A part of the guard whose module does not import."""

raise ImportError("planted: this module does not import")
