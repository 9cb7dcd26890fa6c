"""Models for use or to give away."""
