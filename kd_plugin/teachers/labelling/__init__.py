"""Teachers that classify sentences or label words: fairseq checkpoints, Hugging Face folders, ensembles, caches."""
