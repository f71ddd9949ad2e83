"""The two ends of the gateway benchmark, the load between them, and the peers."""
