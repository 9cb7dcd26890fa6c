"""Evaluates models that classify sentences, label words or predict numbers."""
