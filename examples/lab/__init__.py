"""The lab model: a tiny Llama chat pair, trained from scratch on prompts that the project writes itself."""
