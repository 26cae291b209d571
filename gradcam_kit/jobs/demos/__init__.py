"""The demos: a page with photographs within seconds, and every method on pictures with known objects."""
