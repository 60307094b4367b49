"""One measurement in a fresh process."""
