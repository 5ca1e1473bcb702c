"""Arrays in, arrays out: run one graph on one device."""
