"""Methods: each fits probes, steering vectors or watches that go into the artifact."""
