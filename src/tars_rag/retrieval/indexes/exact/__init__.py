"""The exact vector index: what is nearest is found."""
