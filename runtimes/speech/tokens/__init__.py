"""The tokens of a Whisper: what they spell, which may follow which, and what says itself again."""
