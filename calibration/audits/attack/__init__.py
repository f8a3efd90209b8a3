"""White-box attacks: how far somebody with the weights gets past refusals and probes."""
