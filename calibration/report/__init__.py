"""The report: an artifact and its evidence as one page for a person who must decide whether to trust it."""
