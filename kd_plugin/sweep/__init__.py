"""Choosing training flags by experiment: `kd-plugin sweep`."""
