"""The offline spoke: prompts in, probes and steering vectors out. Imports `guard` and `probes`, never `serving`."""
