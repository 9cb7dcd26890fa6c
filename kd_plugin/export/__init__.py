"""Exports models for deployment or publication."""
