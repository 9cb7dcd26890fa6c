"""Model files: read safely, recognised, opened, described as stock fairseq's, converted."""
