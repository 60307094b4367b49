"""One budget shared among heads and blocks, at the least damage."""
