"""White-box attacks on a guarded model: how far does whoever holds the weights get past refusals and probes?"""
