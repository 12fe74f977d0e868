"""Which model answers a request: aliases, weighted splits, and shadows."""
