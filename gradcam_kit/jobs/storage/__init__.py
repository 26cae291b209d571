"""What a run leaves on disk: folders, shards of rows, and the manifest."""
