"""Demos: explain photographs on a page within seconds, or try every method on pictures with known objects."""
