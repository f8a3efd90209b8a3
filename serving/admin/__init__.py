"""Administration of a guarded server: a process and a port of its own, for whoever runs the server."""
