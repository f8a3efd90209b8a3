"""Probes and combinations of them on sources that they never saw."""
