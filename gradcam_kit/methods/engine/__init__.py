"""The engine: it runs one pass for several methods and turns the captured tensors into explanations."""
