"""Reading: prompts pass through a model once, and what its blocks held is kept on disk or in moments."""
