"""A runtime a file, and what those on GPUs share."""
