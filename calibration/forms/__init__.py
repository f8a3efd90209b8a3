"""Forms: one request asked in many ways, to see which of them the probes hold."""
