"""Novelty: how unlike benign traffic a prompt is. Such scores never block alone."""
