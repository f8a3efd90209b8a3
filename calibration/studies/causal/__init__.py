"""What the model's refusals do when a part of it is changed."""
