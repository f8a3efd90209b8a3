"""vLLM without a server: engines that record activations or score prompts, and servers run for tests and the demo."""
