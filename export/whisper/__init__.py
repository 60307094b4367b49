"""Whisper's graphs, front end and proof."""
