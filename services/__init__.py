"""Where things run: one module per process, and the command line."""
