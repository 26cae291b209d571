"""The numbers behind the limits of the diagnostics, over models that are healthy."""
