"""One position's state replaced by a harmless prompt's."""
