"""Linear classifiers of a block's stream, at one token or the mean of the content."""
