"""A teacher at work on a corpus: translations, and answers for the cache."""
