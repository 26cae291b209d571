"""Arithmetic of the diagnostics: pure functions on tensors."""
