"""The user's model: its state, layers, inputs, memory format, and compiled parts."""
