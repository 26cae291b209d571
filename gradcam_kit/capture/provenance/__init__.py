"""Where in the images the values of a layer come from: followed operation by operation, never guessed from a shape."""
