"""Model families: how each is loaded, batched, scored and asked.  One file each."""
