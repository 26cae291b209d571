"""Pictures as pixels: decode, place, paint, and write them."""
