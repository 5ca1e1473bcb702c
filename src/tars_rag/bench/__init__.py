"""Measurements: what this machine does (`run`), and the quality of a search (`evaluate`)."""
