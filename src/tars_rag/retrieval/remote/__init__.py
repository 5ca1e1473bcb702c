"""Stores and models that a tars-rag server has, asked over HTTP."""
