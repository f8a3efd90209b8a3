"""The load formats of vLLM that read a model's own files."""

FORMATS_READ = ("auto", "hf", "safetensors", "mistral", "fastsafetensors", "runai_streamer", "instanttensor")
"""Those that read the safetensors files that the fingerprint is of."""
