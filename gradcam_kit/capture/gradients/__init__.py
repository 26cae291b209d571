"""Backward passes: gradients at layers, at biases, and the graph of the output."""
