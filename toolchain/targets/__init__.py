"""The targets, and what this machine lacks for them."""
