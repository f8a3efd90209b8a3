"""Steering vectors: fitted, measured at several strengths, and admitted or left out."""
