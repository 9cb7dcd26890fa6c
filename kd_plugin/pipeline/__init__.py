"""Offline work over files, each a verb of kd-plugin."""
