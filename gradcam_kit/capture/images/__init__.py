"""Find the image input, the axis of its channels, and the axes that a layer shares with the images."""
