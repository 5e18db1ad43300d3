"""``unigrpo report``: one page of what a folder holds."""
