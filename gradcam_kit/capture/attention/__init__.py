"""Attention maps: which softmaxes are attention among image tokens, and how they are recorded."""
