"""Arithmetic that several methods share: pure functions on tensors."""
