"""Novelty: how unlike benign traffic a prompt is. Such scores call for a second look and never block alone."""
