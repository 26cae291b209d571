"""The engine: one pass for several methods, and the way from captured tensors to an explanation."""
