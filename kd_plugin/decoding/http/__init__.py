"""Translations from a language model behind an OpenAI-compatible server: `kd-plugin decode --engine http`."""
