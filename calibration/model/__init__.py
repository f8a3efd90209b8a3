"""The model: a Hugging Face model whose parts are read, changed and asked for answers."""
