"""The encoder architectures: their configuration, the names of their weights, and their graphs."""
