"""Folders that are whole or not there, and the place inside a rollout window."""
