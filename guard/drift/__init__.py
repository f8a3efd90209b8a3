"""Drift: whether traffic still scores as calibration's benign prompts did, and what moved it if it does not."""
