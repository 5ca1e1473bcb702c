"""What a store's directory is, and how it survives."""
