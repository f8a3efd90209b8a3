"""Audits: commands on a finished artifact or on finished models."""
