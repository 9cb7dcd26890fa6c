"""Distillation on what the student itself says, instead of on references alone."""
