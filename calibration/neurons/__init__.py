"""Safety neurons: ranked, patched from one model into its partner, and held against helpfulness (arXiv 2406.14144)."""
