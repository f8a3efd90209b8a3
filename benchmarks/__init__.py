"""What the guard costs: guarded against unguarded vLLM on the same work, interleaved in one run. `make bench`."""
