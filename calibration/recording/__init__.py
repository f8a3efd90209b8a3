"""Recording: prompts pass through the model once, and activations or scores of them are kept."""
