"""From a window of sound to text."""
