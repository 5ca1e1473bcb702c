"""Stores in a table of LanceDB, which many machines share (docs/lance.md)."""
