"""Attention maps: find the softmaxes that are attention among image tokens, and record them."""
