"""Measurements: the quality of a search, and the amount of work sent to a device."""
