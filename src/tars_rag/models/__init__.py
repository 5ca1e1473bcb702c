"""Text in, vectors or scores out."""
