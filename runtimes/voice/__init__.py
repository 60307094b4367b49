"""Speech told from other sounds."""
