"""Where long work runs: in shards, in processes, on a cluster."""
