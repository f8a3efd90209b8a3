"""Safety neurons: ranked by what they do, and read as a probe (arXiv 2406.14144)."""
