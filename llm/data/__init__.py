"""From files to batches: records, token files, datasets, plans, and the embedded corpus `tinyworld`."""
