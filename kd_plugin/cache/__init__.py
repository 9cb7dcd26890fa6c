"""A teacher's answers on disk: the store's format, how it is written and how it is read. No fairseq; torch only where
logits become records (compress.py)."""
