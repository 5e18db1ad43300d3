"""The stages of a training window, and what keeps a run alive."""
