"""Chroma: texts, metadata, vectors and filters; the truth of a store."""
