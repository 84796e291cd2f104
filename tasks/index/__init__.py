"""Documents to a search index with production's vectors: shards of vectors in the store, loaded into a target."""
