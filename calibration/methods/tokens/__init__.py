"""Probes that read every token of a prompt."""
