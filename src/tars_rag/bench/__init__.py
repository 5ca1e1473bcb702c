"""What was measured on this machine: retrieval quality, latency, work sent to the device."""
