"""How the demos' audio and weights are made; not installed."""
