"""Scores, significance, speed and size of models."""
