"""How well probes hold the forms of a request, and thresholds for other endings."""
