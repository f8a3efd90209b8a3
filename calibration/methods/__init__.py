"""Methods: each fits probes or steering vectors on a `TrainingSet`, and knows nothing of the others."""
