"""Dataset rows, the pictures in them, and the codes that pictures become."""
