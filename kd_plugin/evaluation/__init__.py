"""Evaluates models: scores, significance, speed and size."""
