"""``unigrpo benchmark``: every algorithm on the shipped toy policies, with equal forward passes for each."""
