"""Watches: probes read along the model's own answers, and certified on harmless ones."""
