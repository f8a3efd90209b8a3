"""The worker's process: reads hidden states, keeps scores beside the KV cache, and steers as it is told."""
