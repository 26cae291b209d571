"""Numbers about maps."""
