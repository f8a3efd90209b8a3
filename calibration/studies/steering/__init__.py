"""Ways of steering beside the vectors that an artifact holds."""
