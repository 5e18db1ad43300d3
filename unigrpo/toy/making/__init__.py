"""How the shipped checkpoints were made."""
