"""The brain: policy, verdict, thresholds and metrics. No vllm, no transformers, and no torch in the decision path."""
