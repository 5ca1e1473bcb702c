"""What both framework rooms need: shared engines, threads for async callers, foreign models."""
