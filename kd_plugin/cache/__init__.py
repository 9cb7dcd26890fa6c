"""A teacher's answers on disk: the store's format, how it is written and how it is read. Pure numpy, no fairseq."""
