"""Documents to a search index that serves production's vectors: shards of vectors in the store, loaded into a target."""
