"""Files in, passages in a store."""
