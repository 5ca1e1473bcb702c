"""Texts in, passages of them out: the one place that decides where a text is cut."""
