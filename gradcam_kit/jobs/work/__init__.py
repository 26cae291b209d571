"""What a run does to a batch of images: load the model, decode, explain, measure, and render."""
