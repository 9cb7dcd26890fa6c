"""Chooses the translations to train on: selects, filters, scores."""
