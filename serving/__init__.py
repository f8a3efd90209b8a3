"""Online spoke: the guard inside vLLM. Never imports calibration."""
