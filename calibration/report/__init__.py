"""The report: an artifact and its evidence, in the terminal and as one page."""
