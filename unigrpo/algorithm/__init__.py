"""What an update computes: noise, likelihood, advantages and losses."""
