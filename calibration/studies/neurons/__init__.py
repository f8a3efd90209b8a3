"""Safety neurons patched from one model into its partner, and their price in helpfulness."""
