"""A teacher's answers on disk: the store's format, its writer and its reader.

No fairseq; torch only where logits become records (compress.py).
"""
