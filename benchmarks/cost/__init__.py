"""Cost: guarded against unguarded vLLM, as paired ratios with their spread."""
