"""The demos: a page with photographs that is there in seconds, and every method on pictures with known objects."""
