"""``unigrpo reproduce``: a result measured again, against what was expected of it beforehand."""
