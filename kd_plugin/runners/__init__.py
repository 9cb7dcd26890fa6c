"""Runs long work: in shards, in processes, on a cluster."""
