"""``unigrpo serve-rewards``: the rewards of a recipe over HTTP."""
