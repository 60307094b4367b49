"""Two results files side by side."""
