"""Steering, measured: what vectors and other pushes do to refusals, and what harmless answers pay for it."""
