"""The operators' console: pages on what the guard decides, and on what another threshold would decide."""
