"""The arguments of a run, the presets behind ``algorithm``, and what is checked of them."""
