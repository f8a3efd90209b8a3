"""Ground floor: what a probe is. Imports torch, numpy, pydantic and safetensors only, and no other floor."""
