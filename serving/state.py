"""The state folder: where the server's processes and its administration find what the others tell."""

PROCESSES = "processes"
"""A folder with a file for each process: which policy it goes by (`guard.process_states`)."""
DRIFT = "drift"
"""A folder with a file for each process: what it found of drift (`DriftSnapshot.to_json`)."""
ACKNOWLEDGED = "acknowledged"
"""A file in that folder: touched, it has every process watch anew."""
