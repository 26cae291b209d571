"""The work of a run on a batch of images: load the model, decode, explain, measure, and render."""
