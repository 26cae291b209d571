"""Which input the images are, which axis holds their channels, and which axes of a layer are axes of the images."""
