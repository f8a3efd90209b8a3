"""Updates: which requests another model, artifact or policy decides otherwise."""
