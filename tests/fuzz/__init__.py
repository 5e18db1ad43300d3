"""Hostile input by chance: ``python -m tests.fuzz TARGET --seconds N`` with coverage, hypothesis without."""
