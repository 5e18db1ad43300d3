"""Toy tasks on which the whole library runs, and learns, in minutes on two CPU cores."""
