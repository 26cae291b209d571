"""Diagnostics: look inside of a model while it trains, and say what is wrong, where, and what to try."""
