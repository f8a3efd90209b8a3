"""Watches: probes read along the model's own answers, measured on harmless ones, and certified like prompts' scores."""
