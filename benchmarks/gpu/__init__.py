"""The guard's cost on a GPU, at the shape of a model that people serve, with random weights."""
