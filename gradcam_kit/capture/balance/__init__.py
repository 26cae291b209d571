"""Balanced gradients: a backward pass in which normalizations, gates and attention are constant factors."""
