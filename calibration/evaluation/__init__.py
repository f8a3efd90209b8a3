"""Evaluation: what probes are worth on prompts that took no part in fitting."""
