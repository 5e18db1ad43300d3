"""``unigrpo app``: a page to talk to a policy, which shows each answer while it is denoised."""
