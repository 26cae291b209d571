"""The files of a run: folders, shards of rows, and the manifest."""
