"""Requests in, answers out: one process that owns models and stores (extra ``server``)."""
