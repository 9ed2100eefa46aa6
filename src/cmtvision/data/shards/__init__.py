"""WebDataset shards: found, indexed, read and written."""
