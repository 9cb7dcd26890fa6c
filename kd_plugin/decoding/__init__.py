"""Running a teacher on a corpus: translations, and answers for the cache."""
