"""Studies: optional measurements that explain probes and vectors. No artifact needs them."""
