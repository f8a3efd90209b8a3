"""Fitting: what every probe method takes and returns, and the statistics that they share."""
