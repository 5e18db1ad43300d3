"""``unigrpo evaluate --tasks``: a policy on benchmarks and on the shipped worlds, with intervals, answers and what changes them."""
